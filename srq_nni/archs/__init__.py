"""Networks for BasicSR's registry: importing this package registers them, as BasicSR does with its own."""

from srq_nni.archs import aliases_arch, quantized_arch, rdn_arch, srresnet_arch

__all__ = ["aliases_arch", "quantized_arch", "rdn_arch", "srresnet_arch"]
