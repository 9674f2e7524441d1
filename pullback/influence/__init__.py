"""How trained weights, predictions and losses answer to changes of the training data."""

from pullback.influence.checkpoints import gradient_influence
from pullback.influence.cost_response import CostResponse, cost_response, mixed_second_vp
from pullback.influence.damped_curvature import DampedCurvature, damped_curvature
from pullback.influence.dual import DampedInverse
from pullback.influence.leave_one_out import LeaveOneOut, leave_one_out
from pullback.influence.mixed import MixedDerivative
from pullback.influence.plan import InfluencePlan, plan_influence
from pullback.influence.query import Influence, query_influence
from pullback.influence.response import Response, response
from pullback.influence.self_influence import self_influence

__all__ = [
    "CostResponse",
    "DampedCurvature",
    "DampedInverse",
    "Influence",
    "InfluencePlan",
    "LeaveOneOut",
    "MixedDerivative",
    "Response",
    "cost_response",
    "damped_curvature",
    "gradient_influence",
    "leave_one_out",
    "mixed_second_vp",
    "plan_influence",
    "query_influence",
    "response",
    "self_influence",
]
