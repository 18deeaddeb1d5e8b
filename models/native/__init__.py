"""What is written for one kind of processor: C++ built at installation, and torch's own kernels wherever that is missing."""

from models.native.attention import attend as attend
from models.native.attention import available as available
from models.native.attention import suits as suits
from models.native.dense import GROUP as GROUP
from models.native.dense import DenseLayer as DenseLayer
from models.native.dense import Packed as Packed
from models.native.dense import Stack as Stack
from models.native.dense import pack as pack
from models.native.dense import pack_gated as pack_gated
from models.native.dense import read_out as read_out
from models.native.dense import suits_layer as suits_layer
from models.native.dense import suits_matrix as suits_matrix
from models.native.few import FEW as FEW
from models.native.few import attend_few as attend_few
from models.native.few import suits_few as suits_few
from models.native.look import expand as expand
from models.native.look import look_far as look_far
from models.native.look import suits_expand as suits_expand
from models.native.look import suits_look as suits_look
