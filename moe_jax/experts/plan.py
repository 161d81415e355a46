"""The plan of a layer: how its experts are run, with every `auto` resolved.

All that a configuration may leave to `auto` is decided here, and all that cannot be run is refused here.
"""

import dataclasses

import jax
from jax.sharding import AxisType

from moe_jax.configuration import ConfigError, alternatives, require, require_name
from moe_jax.experts.executions import EXECUTIONS
from moe_jax.experts.kernels.choice import KernelChoice, choose_kernel, is_as_fast_as_dense
from moe_jax.experts.parallel.exchange import Wire
from moe_jax.experts.parallel.strategies import STRATEGIES, ParallelConfig
from moe_jax.runtime.mesh import AXES, current_mesh, current_platform

AUTO = "auto"


@dataclasses.dataclass(frozen=True)
class Plan:
    """The way in which the experts of a layer are run.

    Attributes:
      execution: a name in EXECUTIONS.
      kernel: kernel of its grouped products, a name in KERNELS; None for an execution without kernels.
      strategy: a name in STRATEGIES; None on one device.
      wire: type in which rows travel between devices; None takes theirs.
      slack: rows that bounded buffers hold, relative to an even load.
      chosen: names of the fields that `auto` chose.
    """

    execution: str
    kernel: str | None = None
    strategy: str | None = None
    wire: Wire | None = None
    slack: float = 1.5
    chosen: frozenset[str] = frozenset()

    def __str__(self) -> str:
        """Describes the plan in one line."""
        line = f"experts run by {self._named('execution')}"
        line += f" with kernel {self._named('kernel')}" if self.kernel else ""
        return line + (f", reached by {self._named('strategy')}" if self.strategy else "")

    def _named(self, field: str) -> str:
        return repr(getattr(self, field)) + (f" (chosen by {AUTO!r})" if field in self.chosen else "")


def plan_here(
    execution: str = AUTO,
    kernel: KernelChoice = AUTO,
    parallel: ParallelConfig | None = None,
    rows_per_token: float = 1.0,
) -> Plan:
    """Makes the plan for the mesh of the surrounding `jax.set_mesh`, or for one device of this process.

    Arguments and errors are those of `plan_for`; None for `parallel` leaves the strategy to `auto`.
    """
    mesh, ambient = current_mesh(), jax.sharding.get_abstract_mesh()
    parallel = parallel or ParallelConfig()
    accepted = "Auto in jax.make_mesh; moe_jax.layers.moe.MoE takes Explicit, too"
    require(AxisType.Explicit not in ambient.axis_types, "axis types of the mesh", ambient.axis_types, accepted)
    if not (ambient.empty or ambient.size == 1 or ambient.manual_axes or set(AXES) <= set(ambient.axis_names)):
        accepted = f"a mesh with the axes {', '.join(AXES)}, or strategy='auto', with which XLA divides the experts"
        require(parallel.strategy == AUTO, "mesh", ambient.axis_names, accepted)
    devices = None if mesh is None else mesh.shape["expert"]
    return plan_for(execution, kernel, parallel, rows_per_token, current_platform(), devices)


def plan_for(
    execution: str,
    kernel: KernelChoice,
    parallel: ParallelConfig,
    rows_per_token: float,
    platform: str,
    devices: int | None,
) -> Plan:
    """Makes the plan for a platform and a number of devices.

    What is named is run or refused, never replaced; `auto` takes the fastest that goes with what is named.

    Args:
      execution: a name in EXECUTIONS, or `auto`.
      kernel: a name in KERNELS, or `auto`.
      parallel: how tokens reach experts on other devices.
      rows_per_token: rows sent to experts for each token, empty seats included: capacity_factor * k, or k if nothing is
        dropped.
      platform: `cpu`, `gpu` or `tpu`.
      devices: P, those that share the experts; None without a mesh, where there is nothing to reach.

    Raises:
      ConfigError: the platform does not have the kernel or the strategy, the execution has no kernels, or the strategy
        runs experts by another execution. Fields are named as in the configuration of a mixture.
    """
    require_name(execution, (AUTO, *EXECUTIONS), "execution")
    asked = {"execution": execution, "kernel": kernel, "strategy": parallel.strategy}
    if execution == AUTO:
        execution = _choose_execution(kernel, parallel.strategy, platform, devices)
    chosen_kernel = _choose_kernel(kernel, execution, platform)
    strategy = None if devices is None else _choose_strategy(parallel, execution, platform, devices, rows_per_token)
    chosen = frozenset(field for field, name in asked.items() if name == AUTO)
    return Plan(execution, chosen_kernel, strategy, parallel.wire, parallel.slack, chosen)


def _choose_execution(kernel: KernelChoice, strategy: str, platform: str, devices: int | None) -> str:
    """Chooses the execution that a named strategy or kernel needs, else the fastest.

    The fastest is `dropless` on one device whose kernel is as fast as dense products. Elsewhere it is `padded`: XLA
    makes batched products of it, and devices exchange seats instead of buffers for the worst case.
    """
    if devices is not None and strategy != AUTO and STRATEGIES[strategy].execution:
        return STRATEGIES[strategy].execution
    if kernel != AUTO:
        return next(name for name, execution in EXECUTIONS.items() if execution.has_kernels)
    return "dropless" if devices is None and is_as_fast_as_dense(platform) else "padded"


def _choose_kernel(kernel: KernelChoice, execution: str, platform: str) -> str | None:
    """Chooses a kernel for an execution that has any."""
    if EXECUTIONS[execution].has_kernels:
        return choose_kernel(kernel, platform)
    if kernel != AUTO:
        having = alternatives([name for name, other in EXECUTIONS.items() if other.has_kernels])
        raise ConfigError(
            f"kernel is {kernel!r}, but execution {execution!r} has no kernels; use 'auto', or execution {having}"
        )
    return None


def _choose_strategy(
    parallel: ParallelConfig, execution: str, platform: str, devices: int, rows_per_token: float
) -> str:
    """Chooses the strategy that is named, or the best for platform and shape."""
    fitting = {name: strategy for name, strategy in STRATEGIES.items() if strategy.fits(execution, platform)}
    name = parallel.strategy
    if name == AUTO:
        preferred = [name for name, strategy in fitting.items() if platform in strategy.preferred_on]
        # A token costs `gather` P - 1 rows each way, and other strategies rows_per_token * (1 - 1 / P).
        return preferred[0] if devices > max(1.0, rows_per_token) else "gather"
    if name in fitting:
        return name
    field, use = "parallel.strategy", alternatives((AUTO, *reversed(fitting)))
    needed = STRATEGIES[name].execution
    if needed not in (None, execution):
        but = f"which needs execution={needed!r}, but execution is {execution!r}"
        raise ConfigError(f"{field} is {name!r}, {but}; use {use}, or change execution")
    raise ConfigError(f"{field} is {name!r}, which platform {platform!r} cannot run; use {use}")
