"""The memory budget of a run, `memory_budget_mb` in globals.yml."""

import logging
from typing import Any

from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import CatalogProtocol

from kd_pipeline.memory import AUTO, MemoryBudget, open_budget

MEMORY_BUDGET = "memory_budget"
"""Entry of the catalog in memory. Each node that takes it gets a copy: what an earlier node held
is free again."""

logger = logging.getLogger(__name__)


class MemoryHook:
    """Gives the nodes that hold pixels or soft targets the budget, and logs it."""

    def __init__(self) -> None:
        """`auto`, as where globals.yml does not name a number."""
        self._given: int | str = AUTO
        self._budget = MemoryBudget(0)

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Read the setting.

        Raises:
            ParameterError: If it is neither `auto` nor a number of MiB.
        """
        self._given = context.config_loader["globals"].get("memory_budget_mb", AUTO)
        self._budget = open_budget(self._given)

    @hook_impl
    def after_catalog_created(self, catalog: CatalogProtocol[Any, Any]) -> None:
        """Fill the entry that nodes take."""
        catalog.save(MEMORY_BUDGET, self._budget)

    @hook_impl
    def before_pipeline_run(self) -> None:
        """Log the budget."""
        num_mib = self._budget.left // 2**20
        logger.info("memory budget: %d MiB (memory_budget_mb: %s)", num_mib, self._given)
