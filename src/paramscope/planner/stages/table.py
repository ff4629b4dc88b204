"""All stages that take a model, or what is as large as one, by their rules' names."""

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from paramscope.config.kinds import Planted
from paramscope.config.model import Config
from paramscope.planner.stages import compression, dpsgd, geometry, model, response
from paramscope.planner.stages.phases import Stage

STAGES: Mapping[str, Callable[[Config], Stage]] = MappingProxyType(
    {
        stage.__name__: stage
        for stage in (
            *(model.base, model.target, model.shadow),
            *(geometry.curvature_draws, geometry.curvature, geometry.spotcheck),
            *(geometry.curvature_blocks, geometry.eigenspace, geometry.activation_sparsity),
            *(geometry.membership_features, geometry.kfac, geometry.directions, geometry.units),
            *(response.membership, response.noise_range, response.prm),
            *(response.tensor_responses, response.removal),
            *(compression.prune, compression.finetune, compression.evaluate),
            *(dpsgd.dpsgd_profile, dpsgd.dp_finetune, dpsgd.privacy_scores),
        )
    }
)


def stages_of(config: Config, rules: Iterable[str] = STAGES) -> dict[str, Stage]:
    """Some rules' stages as the configuration has them; none that its model has no part in."""
    made = {rule: STAGES[rule](config) for rule in rules}
    if not isinstance(config.models[config.model], Planted):
        return made
    return {
        rule: stage
        for rule, stage in made.items()
        if all(phase.workload is not None for phase in stage.phases)
    }
