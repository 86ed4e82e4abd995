"""What is seen of a run while it goes on: callbacks for the stages (history, log, TensorBoard, progress), and progress bars."""

from torchimpt.watch.callbacks import Callback, History, Log, by_roi, together
from torchimpt.watch.progress import Progress, Stage
from torchimpt.watch.tensorboard import TensorBoard

__all__ = ["Callback", "History", "Log", "Progress", "Stage", "TensorBoard", "by_roi", "together"]
