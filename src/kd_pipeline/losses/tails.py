"""What a top-k cache can answer. Without torch: hooks ask before anything runs."""

from kd_pipeline.errors import ParameterError

TAILS = ("ghost", "uniform")
"""What may be made of a top-k cache's tail."""


def check_tail(soft_loss: str, temperature: float, *, cached_at: float) -> None:
    """Refuse what a top-k cache cannot answer.

    Args:
        soft_loss: The arm's loss.
        temperature: The arm's.
        cached_at: The temperature that the cache is tied to.

    Raises:
        ParameterError: Naming the arm's parameter.
    """
    if soft_loss == "logit_mse":
        raise ParameterError("soft_loss", "not need every logit of a top-k cache", soft_loss)
    if soft_loss != "pseudo_label" and temperature != cached_at:
        rule = f"be {cached_at:g}, which this top-k cache is tied to"
        raise ParameterError("temperature", rule, temperature)
