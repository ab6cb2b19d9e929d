"""Generated code, run in a sandbox: HumanEval and MBPP problems, verdicts, pass@k; likelihoods of known programs."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.audit.code.benchmarks import Problem as Problem
    from likely.audit.code.benchmarks import ProgramVerdict as ProgramVerdict
    from likely.audit.code.benchmarks import Report as Report
    from likely.audit.code.benchmarks import check as check
    from likely.audit.code.benchmarks import check_all as check_all
    from likely.audit.code.benchmarks import evaluate as evaluate
    from likely.audit.code.benchmarks import pass_at_k as pass_at_k
    from likely.audit.code.benchmarks import problems as problems
    from likely.audit.code.lame_prompts import lame_prompt as lame_prompt
    from likely.audit.code.likelihoods import CodeEvaluation as CodeEvaluation
    from likely.audit.code.likelihoods import CodeReport as CodeReport
    from likely.audit.code.likelihoods import CodeTask as CodeTask
    from likely.audit.code.likelihoods import code_tasks as code_tasks
    from likely.audit.code.mutants import Mutant as Mutant
    from likely.audit.code.mutants import mutants as mutants
    from likely.audit.code.sandbox import Execution as Execution
    from likely.audit.code.sandbox import SandboxLimits as SandboxLimits
    from likely.audit.code.sandbox import run_python as run_python

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
