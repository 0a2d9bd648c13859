"""The target `c`: int8 C99 code for microcontrollers, without a runtime."""

import shlex

from kd_pipeline.export.c_code import write_model
from kd_pipeline.export.c_graph import read_graph
from kd_pipeline.export.c_run import host_compiler, measure_sizes, open_model
from kd_pipeline.export.onnx_files import int8_graph
from kd_pipeline.export.target import ExportedFile, ExportJob, Target

_FILE = "model.c"


def export_c(job: ExportJob) -> list[ExportedFile]:
    """Write model.c and model.h of a job's int8 ONNX graph.

    Raises:
        ExportError: If an operator has no kernel in C, or there is no compiler to measure with.
    """
    network, path = read_graph(int8_graph(job)), job.folder / _FILE
    names = job.checkpoint.class_names
    write_model(network, path, class_names=names, metadata=job.metadata)
    return [ExportedFile("c", "int8", path, measure_sizes(path))]


TARGET = Target(
    files={"int8": _FILE},
    export=export_c,
    open=open_model,
    packages=("onnx", "onnxruntime", "onnxscript"),
    extra="onnx",
    one_thread=True,
    programs=(shlex.split(host_compiler())[0], "size"),
)
