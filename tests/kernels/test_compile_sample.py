"""The sampling kernels compile for GPUs that are not here."""


def test_kernels_compile_without_spills_and_without_fused_products(assert_compiles):
    modules = ("noise", "filters", "sample", "adjust")
    usages = assert_compiles(*(f"redraft.kernels.{module}" for module in modules))
    # a fused multiply-add rounds once where torch rounds twice: noise and weights would not be the twin's
    assert [usage for usage in usages if usage["fused"]] == []
