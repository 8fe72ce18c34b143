# find_package(proptim): the target proptim::proptim, a static library that is already compiled.

include(CMakeFindDependencyMacro)
if(NOT WIN32)
  set(THREADS_PREFER_PTHREAD_FLAG ON)
  find_dependency(Threads)
endif()
include("${CMAKE_CURRENT_LIST_DIR}/proptimTargets.cmake")
