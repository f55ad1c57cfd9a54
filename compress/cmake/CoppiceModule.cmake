# coppice_module(<name> SOURCES <sorted list> [DEPENDS <targets>]): static library coppice_<name>, alias coppice::<name>, with
# the public headers of <name's folder>/include as a header set, the shared precompiled header, install and export.
file(WRITE ${PROJECT_BINARY_DIR}/pch.cpp "// carries the precompiled header\n")

function(coppice_module name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPENDS;PRIVATE_DEPENDS" ${ARGN})
  set(target coppice_${name})
  add_library(${target} STATIC ${ARG_SOURCES})
  add_library(coppice::${name} ALIAS ${target})
  file(GLOB headers CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/include/coppice/*.h)
  target_sources(${target} PUBLIC FILE_SET HEADERS BASE_DIRS ${CMAKE_CURRENT_SOURCE_DIR}/include FILES ${headers})
  target_include_directories(${target} PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})
  target_link_libraries(${target} PUBLIC ${ARG_DEPENDS})
  foreach(dependency IN LISTS ARG_PRIVATE_DEPENDS)
    target_link_libraries(${target} PRIVATE ${dependency})
  endforeach()
  target_compile_features(${target} INTERFACE cxx_std_20)  # the headers need it, whatever the user's project asks for
  set_target_properties(${target} PROPERTIES EXPORT_NAME ${name} VERIFY_INTERFACE_HEADER_SETS ON)
  coppice_target(${target})
  set_property(GLOBAL APPEND PROPERTY COPPICE_MODULES ${name})
endfunction()

# Warnings, sanitizers and the shared precompiled header: for every target of the project.
function(coppice_target target)
  # -fPIC for programs too: a precompiled header is only valid where it is the same, and CMake gives programs -fPIE.
  target_compile_options(${target} PRIVATE -fPIC -Wall -Wextra -Wno-unused-parameter)
  if(COPPICE_WERROR)
    target_compile_options(${target} PRIVATE -Werror)
  endif()
  if(COPPICE_SANITIZE)
    target_compile_options(${target} PRIVATE -fsanitize=${COPPICE_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all -g1)
    target_link_options(${target} PRIVATE -fsanitize=${COPPICE_SANITIZE})
    # vptr needs typeinfo that LibTorch hides for some classes.
    if(COPPICE_SANITIZE MATCHES "undefined")
      target_compile_options(${target} PRIVATE -fno-sanitize=vptr)
    endif()
  endif()
  if(COPPICE_CCACHE)
    target_compile_options(${target} PRIVATE $<$<CXX_COMPILER_ID:GNU>:-fpch-preprocess> $<$<CXX_COMPILER_ID:Clang>:-Xclang -fno-pch-timestamp>)
  endif()
  # One precompiled header for all targets: LibTorch's headers alone take about 15 s a source. Not <torch/torch.h>: its modules
  # have virtual functions that the compiler instantiates again in every source, which takes longer than most sources.
  if(NOT TARGET coppice_pch)
    add_library(coppice_pch OBJECT ${PROJECT_BINARY_DIR}/pch.cpp)
    target_link_libraries(coppice_pch PRIVATE coppice::torch nlohmann_json::nlohmann_json)
    target_precompile_headers(coppice_pch PRIVATE <torch/script.h> <torch/nn/module.h> <torch/serialize.h> <torch/csrc/jit/ir/ir.h>
      ${PROJECT_SOURCE_DIR}/compress/cmake/json_instances.h
      <algorithm> <filesystem> <fstream> <functional> <map> <memory> <optional> <regex> <set> <sstream> <string> <unordered_map> <vector>)
    if(COPPICE_TESTS)
      target_link_libraries(coppice_pch PRIVATE GTest::gtest GTest::gmock)
      target_precompile_headers(coppice_pch PRIVATE <gtest/gtest.h> <gmock/gmock.h>)
    endif()
    coppice_target(coppice_pch)
  endif()
  if(NOT target STREQUAL "coppice_pch")
    target_link_libraries(${target} PRIVATE coppice::torch nlohmann_json::nlohmann_json)
    target_precompile_headers(${target} REUSE_FROM coppice_pch)
  endif()
endfunction()

# coppice_test(<name> SOURCES ... DEPENDS <targets> [LABELS ...] [TIMEOUT s] [ALONE]): one GoogleTest program, one ctest. Tests run side by
# side, each on one thread, but for those that are to have the machine ALONE: they watch clocks, or how threads are chosen.
function(coppice_test name)
  cmake_parse_arguments(ARG "ALONE" "TIMEOUT" "SOURCES;DEPENDS;LABELS" ${ARGN})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE ${ARG_DEPENDS} coppice_test_support GTest::gtest GTest::gmock)
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR}/tests)
  coppice_target(${name})
  add_test(NAME ${name} COMMAND ${name})
  set_tests_properties(${name} PROPERTIES TIMEOUT ${ARG_TIMEOUT} LABELS "${ARG_LABELS}" ENVIRONMENT "${COPPICE_TEST_ENVIRONMENT}")
  if(ARG_ALONE)
    set_tests_properties(${name} PROPERTIES RUN_SERIAL ON)
  else()
    set_property(TEST ${name} APPEND PROPERTY ENVIRONMENT OMP_NUM_THREADS=1)
  endif()
endfunction()

# Installs all modules, the program, the find module and the package files for find_package(coppice COMPONENTS ...).
function(coppice_install_package)
  get_property(modules GLOBAL PROPERTY COPPICE_MODULES)
  foreach(module IN LISTS modules)
    install(TARGETS coppice_${module} EXPORT coppiceTargets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} FILE_SET HEADERS)
  endforeach()
  install(TARGETS coppice RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
  set(destination ${CMAKE_INSTALL_LIBDIR}/cmake/coppice)
  install(EXPORT coppiceTargets NAMESPACE coppice:: DESTINATION ${destination})
  configure_package_config_file(${PROJECT_SOURCE_DIR}/compress/cmake/coppiceConfig.cmake.in
    ${PROJECT_BINARY_DIR}/coppiceConfig.cmake INSTALL_DESTINATION ${destination})
  write_basic_package_version_file(${PROJECT_BINARY_DIR}/coppiceConfigVersion.cmake COMPATIBILITY SameMinorVersion)
  install(FILES ${PROJECT_BINARY_DIR}/coppiceConfig.cmake ${PROJECT_BINARY_DIR}/coppiceConfigVersion.cmake
    ${PROJECT_SOURCE_DIR}/compress/cmake/FindLibTorch.cmake DESTINATION ${destination})
endfunction()
