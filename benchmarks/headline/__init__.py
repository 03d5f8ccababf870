"""The comparison this project exists for: EAGLE-3, DFlash by SFT and Draft-OPD at equal training cost."""
