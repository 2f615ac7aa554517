"""The compiled inner loops: functions of arrays, without the interpreter's lock."""
