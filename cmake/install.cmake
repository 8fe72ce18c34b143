# What `cmake --install` of a checkout installs, for programs in C without Python: headers, the static library, a CMake
# package and a pkg-config file. The installed tree can be moved as a whole.

include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
set(_package "${CMAKE_INSTALL_LIBDIR}/cmake/proptim")
set(_headers "${CMAKE_INSTALL_INCLUDEDIR}/proptim") # its own folder: rules.def is too general a name

file(GLOB _public CONFIGURE_DEPENDS csrc/include/*.h csrc/include/*.def)
list(FILTER _public EXCLUDE REGEX "proptim_python\\.h$") # for extensions of an installed Python package
install(FILES ${_public} DESTINATION "${_headers}")
install(TARGETS proptim EXPORT proptimTargets ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}"
  INCLUDES DESTINATION "${_headers}")
install(EXPORT proptimTargets NAMESPACE proptim:: DESTINATION "${_package}")
write_basic_package_version_file("${PROJECT_BINARY_DIR}/proptimConfigVersion.cmake" COMPATIBILITY SameMajorVersion)
install(FILES cmake/installedConfig.cmake DESTINATION "${_package}" RENAME proptimConfig.cmake)
install(FILES "${PROJECT_BINARY_DIR}/proptimConfigVersion.cmake" DESTINATION "${_package}")

file(RELATIVE_PATH to_prefix "/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/")
string(REGEX REPLACE "/$" "" to_prefix "${to_prefix}")
set(libs "")
if(UNIX)
  set(libs "-lm")
endif()
get_target_property(_linked proptim LINK_LIBRARIES)
if("Threads::Threads" IN_LIST _linked)
  string(APPEND libs " -pthread")
endif()
configure_file(cmake/installed.pc.in installed.pc @ONLY)
install(FILES "${PROJECT_BINARY_DIR}/installed.pc" DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig" RENAME proptim.pc)
