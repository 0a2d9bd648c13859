"""Chains: a model learns from the one before it, hop by hop, along one list in the parameters."""

from kd_pipeline.pipelines.chain.pipeline import create_pipeline, without_list

__all__ = ["create_pipeline", "without_list"]
