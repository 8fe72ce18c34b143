# find_package(proptim): the target proptim::proptim, compiled from the sources next to this file.

get_property(_proptim_languages GLOBAL PROPERTY ENABLED_LANGUAGES)
if(NOT "C" IN_LIST _proptim_languages)
  set(proptim_FOUND FALSE)
  set(proptim_NOT_FOUND_MESSAGE "proptim is compiled from C; expected C among the languages: project(... LANGUAGES C CXX)")
  return()
endif()
include("${CMAKE_CURRENT_LIST_DIR}/proptim.cmake")
