# Writes rules.pxd with the names that proptim.h defines from rules.def and stages.def: Cython cannot read these lists.

foreach(list rules stages)
  file(READ csrc/include/${list}.def ${list})
  string(REGEX REPLACE "^/\\*.*\\*/" "" ${list} "${${list}}") # the comment
  string(REGEX REPLACE "[ \n]+" " " ${list} "${${list}}")
  string(REGEX REPLACE " $" "" ${list} "${${list}}")
endforeach()
string(REGEX REPLACE " PROPTIM_RULE\\(([a-z0-9_]+), \\(([^)]+)\\), \"[a-z]+\", \\(([^)]+)\\)\\)" [[
    proptim_rule PROPTIM_\1
    ctypedef struct proptim_\1_arrays:
        proptim_array \2
    ctypedef struct proptim_\1_coefs:
        double \3
]] rules "${rules}")
string(REGEX REPLACE " PROPTIM_STAGE\\(([a-z0-9_]+), \\([^)]+\\), [^)]+\\)" "    proptim_stage PROPTIM_\\1\n" stages "${stages}")
file(CONFIGURE OUTPUT rules.pxd @ONLY CONTENT [[
# The names that proptim.h defines from rules.def and stages.def, for Cython. Written when proptim was built.
from proptim cimport proptim_array, proptim_rule, proptim_stage

cdef extern from "proptim.h" nogil:
@rules@@stages@]])
