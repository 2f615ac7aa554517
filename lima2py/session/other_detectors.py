"""Other detectors of a system: what is asked of each, and which of its frames go to which event."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, JsonValue, ValidationInfo, field_validator

from lima2py.acquisition import Acquisition, TriggerMode
from lima2py.errors import BadParameter
from lima2py.trigger_map import MOST_EVENTS, TriggerMap
from lima2py.units import Model


def _pattern(value: object) -> tuple[int | None, ...]:
    """A trigger map as people write it: `none` where there is no frame."""
    if not isinstance(value, (list, tuple)):
        raise ValueError(
            "should be a list: for each event of a cycle the number of the frame in this cycle, or"
            " none; [0, none, none, none] is a frame for every fourth event"
        )
    if any(isinstance(item, (list, tuple)) for item in value):
        raise ValueError("several frames for one event cannot be; add them up in the detector")
    given = [None if item in ("none", None) else item for item in value]
    if wrong := [item for item in given if item is not None and not _is_number(item)]:
        raise ValueError(f"should hold numbers of frames and none; {wrong[0]!r} is neither")
    return TriggerMap(given).pattern


def _is_number(item: object) -> bool:
    return type(item) is int and item >= 0


def _known(value: object) -> object:
    """Parameters of an acquisition, but for the number of frames, which follows from the map."""
    if isinstance(value, dict):
        if "nb_frames" in value:
            raise ValueError("nb_frames follows from the trigger map; leave it out")
        try:
            Acquisition.load(value, "acquisition")
        except BadParameter as error:
            raise ValueError(str(error)) from None
    return value


class OtherDetector(Model):
    """A detector whose frames go with those of the main one."""

    detector: Annotated[str, Field(min_length=1)]
    """A detector, by name or by its file."""
    set: dict[str, JsonValue] = Field(default_factory=dict)
    """Parameters of the detector to set."""
    acquisition: Annotated[dict[str, JsonValue], BeforeValidator(_known)] = Field(
        default_factory=dict
    )
    """What is asked of it. `expo_time` and `trigger_mode` are as for the run where they are not
    given, `latency_time` what keeps it in step with the events."""
    every: Annotated[int, Field(ge=1, le=MOST_EVENTS)] = 1
    """It takes a frame for the first of so many events."""
    events: Annotated[tuple[int | None, ...], BeforeValidator(_pattern)] | None = None
    """Its trigger map, instead of `every`: for each event of a cycle the number of its frame in
    this cycle, or `none`. `[0, none, 1]` is a frame for the first and one for the last of three
    events, `[0, 0, 0, 0]` one that lasts for four events."""

    @field_validator("events", mode="after")
    @classmethod
    def _check_one_map(
        cls, events: tuple[int | None, ...] | None, info: ValidationInfo
    ) -> tuple[int | None, ...] | None:
        if events is not None and info.data.get("every", 1) != 1:
            raise ValueError("says what `every` says, too; give one of them")
        return events

    @property
    def trigger_map(self) -> TriggerMap:
        """Which of its frames belongs to which event."""
        return TriggerMap.every(self.every) if self.events is None else TriggerMap(self.events)

    def asked(self, name: str, run: Acquisition) -> dict[str, Any]:
        """What is asked of it in a run, as plain values.

        Args:
            name: that graphs have for it.
            run: what is asked of the main detector.

        Raises:
            BadParameter: if it has no frame for any of the events, or waits for software triggers.
        """
        events = self.trigger_map
        mine = Acquisition.load(
            {"expo_time": run.expo_time, "trigger_mode": run.trigger_mode, **self.acquisition,
             "nb_frames": events.nb_frames(run.nb_frames)},
            "acquisition",
        )  # fmt: skip
        if run.nb_frames and not mine.nb_frames:
            raise BadParameter(
                f"nb_frames: {run.nb_frames}; by its trigger map detector {name} has no"
                " frame for so few; ask for more, or leave it out of the graph"
            )
        if mine.trigger_mode is TriggerMode.SOFTWARE:
            raise BadParameter(
                f"trigger_mode: software triggers are for the main detector; say what triggers"
                f" {name} in the system file: acquisition: {{trigger_mode: external}}"
            )
        if mine.trigger_mode is TriggerMode.INTERNAL and "latency_time" not in self.acquisition:
            left = run.period * events.events_per_frame - mine.expo_time
            mine = mine.model_copy(update={"latency_time": max(0.0, left)})
        return mine.plain()
