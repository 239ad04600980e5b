"""Images of any size, depth and format through a network in an engine."""

from srq_nni.speedup.upscale.files import Done, Job, Outcome, Plan, plan, run
from srq_nni.speedup.upscale.network import SRNetwork
from srq_nni.speedup.upscale.pictures import MAX_PIXELS, Picture, read_picture, write_picture
from srq_nni.speedup.upscale.upscaler import upscale

__all__ = [
    "MAX_PIXELS",
    "Done",
    "Job",
    "Outcome",
    "Picture",
    "Plan",
    "SRNetwork",
    "plan",
    "read_picture",
    "run",
    "upscale",
    "write_picture",
]
