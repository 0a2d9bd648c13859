"""The table of all transforms."""

from kd_pipeline.views import blur, colour, geometric, mixing, occlusion, rand_augment
from kd_pipeline.views.record import Table

TRANSFORMS: Table = {
    **geometric.TRANSFORMS,
    **colour.TRANSFORMS,
    **blur.TRANSFORMS,
    **occlusion.TRANSFORMS,
    **rand_augment.TRANSFORMS,
    **mixing.TRANSFORMS,
}
