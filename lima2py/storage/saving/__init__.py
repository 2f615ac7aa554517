"""What nodes write: sinks, the files behind them, and where these go."""
