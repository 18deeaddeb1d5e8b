"""What is written for one kind of processor: C++ built at installation, and torch's own kernels wherever that is missing."""

from models.native.attention import attend as attend
from models.native.attention import available as available
from models.native.attention import suits as suits
from models.native.dense import GROUP as GROUP
from models.native.dense import DenseLayer as DenseLayer
from models.native.dense import Packed as Packed
from models.native.dense import pack as pack
from models.native.dense import pack_gated as pack_gated
from models.native.dense import read_out as read_out
from models.native.dense import suits_layer as suits_layer
from models.native.dense import suits_matrix as suits_matrix
from models.native.fold import fold as fold
from models.native.fold import suits_fold as suits_fold
from models.native.hear import hear as hear
from models.native.hear import suits_hear as suits_hear
from models.native.joint import FEW as FEW
from models.native.joint import attend_jointly as attend_jointly
from models.native.joint import suits_jointly as suits_jointly
from models.native.look import look_far as look_far
from models.native.look import suits_look as suits_look
from models.native.ring import move_sinks as move_sinks
from models.native.ring import suits_ring as suits_ring
from models.native.ring import write_ring as write_ring
from models.native.stack import Kept as Kept
from models.native.stack import Places as Places
from models.native.stack import Stack as Stack
