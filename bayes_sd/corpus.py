"""Where the measurements shipped with bayes_sd lie: in the wheel, or in the checkout."""

from pathlib import Path

from bayes_sd.errors import InputError

PLACES = (Path(__file__).parent / "_traces", Path(__file__).parents[1] / "traces")
FIRST = "vllm-cpu"  # a campaign that is always there


def corpus(campaign: str = "") -> Path:
    """Folder of all shipped campaigns, or of one.

    Raises
    ------
    InputError
        If it is not there.
    """
    for place in PLACES:
        if (place / FIRST).is_dir() and (place / campaign).is_dir():
            return place / campaign
    raise InputError(f"The shipped traces {campaign!r} were not found beside the package.")
