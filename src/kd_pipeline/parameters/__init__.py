"""The typed parameters: one frozen pydantic model per block of `conf/*/parameters_*.yml`.

Kedro validates every `params:` argument annotated with one of these before any node runs. Below
the nodes only plain keyword arguments travel.
"""

from kd_pipeline.parameters.chain import ChainParams
from kd_pipeline.parameters.data_ingest import DataIngestParams
from kd_pipeline.parameters.evaluation import EvaluationParams
from kd_pipeline.parameters.soft_target_verification import SoftTargetVerificationParams
from kd_pipeline.parameters.soft_targets import SoftTargetCachingParams, SoftTargetsParams
from kd_pipeline.parameters.students import ArmParams, StudentParams
from kd_pipeline.parameters.teacher import TeacherParams
from kd_pipeline.parameters.transfer_split import TransferSplitParams
from kd_pipeline.parameters.views import ViewsParams

__all__ = [
    "ArmParams",
    "ChainParams",
    "DataIngestParams",
    "EvaluationParams",
    "SoftTargetCachingParams",
    "SoftTargetVerificationParams",
    "SoftTargetsParams",
    "StudentParams",
    "TeacherParams",
    "TransferSplitParams",
    "ViewsParams",
]
