"""For the tests of mutants: Hypothesis stops at the first example that fails, and does not look for a simpler one."""

from hypothesis import Phase, settings

settings.register_profile(
    "mutants", phases=[Phase.explicit, Phase.reuse, Phase.generate], report_multiple_bugs=False, print_blob=False
)
settings.load_profile("mutants")
