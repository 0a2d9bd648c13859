"""Knowledge distillation from images to an honestly compared student."""

__version__ = "0.1.0"
