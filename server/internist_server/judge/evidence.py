"""Evidence: whether what reached the judge is enough to call a run well."""

from dataclasses import dataclass

from internist.schema.conditions import State


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known beside the points themselves."""

    is_covered: bool = True
    """Whether anything of the model is known to be measured."""
    refusal: str | None = None
    """Why frames were refused lately; None: none were."""
    reference: str | None = None
    """Why the run is not held to the reference that it names; None: it is, or names none."""

    def weigh(self, state: State, sentence: str) -> tuple[State, str]:
        """State and sentence of a run that the judge gives these: where something is hidden, what is well is not known.
        What is wrong is wrong all the same."""
        if state in ("drifting", "violated"):
            return state, sentence
        if self.reference is not None:
            return "not measured", f"It is not held to its reference: {self.reference}. {sentence}"
        if state != "ok":
            return state, sentence
        if self.refusal is not None:
            return "not measured", f"Frames were refused ({self.refusal}): what they held is not known. {sentence}"
        if not self.is_covered:
            return "not measured", f"It is not known that anything of the model is measured. {sentence}"
        return state, sentence
