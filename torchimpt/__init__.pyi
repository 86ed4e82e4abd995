# The public names and where they are: what type checkers read, and what `__init__.py` imports at first use.

from . import (
    dose as dose,
)
from . import (
    evaluate as evaluate,
)
from . import (
    io as io,
)
from . import (
    machine as machine,
)
from . import (
    objectives as objectives,
)
from . import (
    optim as optim,
)
from . import (
    phantoms as phantoms,
)
from . import (
    physics as physics,
)
from . import (
    planning as planning,
)
from . import (
    quantities as quantities,
)
from . import (
    report as report,
)
from . import (
    scenarios as scenarios,
)
from . import (
    schemes as schemes,
)
from . import (
    spots as spots,
)
from .case import Case as Case
from .case import load_case as load_case
from .checks import InputError as InputError
from .checks import PhysicsWarning as PhysicsWarning
from .dose.influence import InfluenceMatrix as InfluenceMatrix
from .dose.influence import influence_matrices as influence_matrices
from .dose.layer import PencilBeamDose as PencilBeamDose
from .dose.operator import DoseOperator as DoseOperator
from .dose.scenarios import ScenarioDoses as ScenarioDoses
from .dose.scenarios import scenario_doses as scenario_doses
from .geometry import Beam as Beam
from .geometry import Grid as Grid
from .geometry import RangeShifter as RangeShifter
from .io.plan import read_plan as read_plan
from .migration.pyradplan import from_pyradplan as from_pyradplan
from .migration.trots import read_trots as read_trots
from .objectives import (
    GEUD as GEUD,
)
from .objectives import (
    BoundObjective as BoundObjective,
)
from .objectives import (
    MaxDose as MaxDose,
)
from .objectives import (
    MaxDVH as MaxDVH,
)
from .objectives import (
    MeanDose as MeanDose,
)
from .objectives import (
    MinDose as MinDose,
)
from .objectives import (
    MinDVH as MinDVH,
)
from .objectives import (
    Objective as Objective,
)
from .objectives import (
    RobustObjective as RobustObjective,
)
from .objectives import (
    UniformDose as UniformDose,
)
from .patient import ROI as ROI
from .patient import Patient as Patient
from .phantoms import phantom as phantom
from .planning.plan import plan as plan
from .resampling import resample as resample
from .scenarios import NOMINAL as NOMINAL
from .scenarios import Scenario as Scenario
from .scenarios import boundary_scenarios as boundary_scenarios
from .schemes.joint import joint as joint
from .spots import Spots as Spots
from .spots.delivery import DeliveryModel as DeliveryModel
from .spots.delivery import delivery_time as delivery_time
from .spots.placement import place_spots as place_spots
from .spots.placement import stagger as stagger
from .version import __version__ as __version__
