"""`to_rms_norm`: makes RMS norms of layer norms, for inference, without a change of outputs."""

from normkit.tools.to_rms_norm.report import Centred, Converted, RMSNormReport, Untied
from normkit.tools.to_rms_norm.run import to_rms_norm

__all__ = ["Centred", "Converted", "RMSNormReport", "Untied", "to_rms_norm"]
