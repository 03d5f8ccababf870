"""The sampling kernels compile for GPUs that are not here."""


def test_kernels_compile_without_spills_and_without_fused_products(assert_compiles):
    usages = assert_compiles("redraft.kernels.noise", "redraft.kernels.filters", "redraft.kernels.sample")
    # a fused multiply-add rounds once where torch rounds twice: noise and weights would not be the twin's
    assert [usage for usage in usages if usage["fused"]] == []
