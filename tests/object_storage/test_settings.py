"""What object_storage.yml may say."""

import pytest
from pydantic import ValidationError

from kd_pipeline.object_storage.settings import ObjectStorageParams


@pytest.mark.parametrize("uri", ["s3://bucket", "s3://my.bucket-1/a/b c", "s3://bucket/a/"])
def test_a_uri_names_a_bucket_and_a_prefix(uri: str) -> None:
    assert ObjectStorageParams(folders={"data": uri}).folders == {"data": uri}


@pytest.mark.parametrize(
    "uri",
    [
        "data",
        "/data",
        "http://host/b",
        "s3://",
        "s3://B/x",
        "s3://u:geheim@b/x",
        "s3://b/x?k=geheim",
    ],
)
def test_what_is_no_such_uri_is_refused_and_not_shown(uri: str) -> None:
    with pytest.raises(ValidationError) as refused:
        ObjectStorageParams(folders={"data": uri})
    [error] = refused.value.errors()
    assert "must have s3://<bucket>/<prefix> for data" in error["msg"]
    assert "geheim" not in error["msg"]


@pytest.mark.parametrize("folder", ["/data", "../data", "data/../..", "."])
def test_a_folder_outside_the_project_is_refused(folder: str) -> None:
    with pytest.raises(ValidationError, match="must name folders inside the project, got"):
        ObjectStorageParams(folders={folder: "s3://bucket/x"})
