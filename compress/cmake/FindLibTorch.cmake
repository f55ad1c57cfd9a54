# Finds LibTorch in a wheel, a LibTorch zip or a distribution package, for the CPU part only: torch's own TorchConfig of a CUDA build
# wants nvcc and the whole toolkit to link a program that uses neither.
#
# Searches LibTorch_ROOT, CMAKE_PREFIX_PATH, the wheel in <source>/.venv, then the system. Defines the imported target
# coppice::torch, LibTorch_VERSION, LibTorch_LIBRARY_DIR and LibTorch_CUDA (does libtorch_cuda lie beside it?).
set(_libtorch_hints)
if(PROJECT_SOURCE_DIR)
  file(GLOB _libtorch_hints ${PROJECT_SOURCE_DIR}/.venv/lib/python3*/site-packages/torch)
endif()
find_path(LibTorch_INCLUDE_DIR torch/csrc/api/include/torch/torch.h PATH_SUFFIXES include HINTS ${_libtorch_hints})
find_library(LibTorch_CPU_LIBRARY torch_cpu PATH_SUFFIXES lib HINTS ${_libtorch_hints})
find_library(LibTorch_C10_LIBRARY c10 PATH_SUFFIXES lib HINTS ${_libtorch_hints})

if(LibTorch_INCLUDE_DIR AND EXISTS ${LibTorch_INCLUDE_DIR}/torch/headeronly/version.h)
  set(_libtorch_version_file ${LibTorch_INCLUDE_DIR}/torch/headeronly/version.h)
elseif(LibTorch_INCLUDE_DIR)
  set(_libtorch_version_file ${LibTorch_INCLUDE_DIR}/torch/csrc/api/include/torch/version.h)
endif()
if(_libtorch_version_file AND EXISTS ${_libtorch_version_file})
  file(STRINGS ${_libtorch_version_file} _libtorch_lines REGEX "define TORCH_VERSION_(MAJOR|MINOR|PATCH) ")
  string(REGEX REPLACE ".*MAJOR ([0-9]+).*MINOR ([0-9]+).*PATCH ([0-9]+).*" "\\1.\\2.\\3" LibTorch_VERSION "${_libtorch_lines}")
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(LibTorch
  REQUIRED_VARS LibTorch_CPU_LIBRARY LibTorch_C10_LIBRARY LibTorch_INCLUDE_DIR
  VERSION_VAR LibTorch_VERSION
  REASON_FAILURE_MESSAGE "Give a LibTorch by -DCMAKE_PREFIX_PATH=/path/to/libtorch, or run tests/setup.sh to put the wheel in .venv.")

if(LibTorch_FOUND AND NOT TARGET coppice::torch)
  get_filename_component(LibTorch_LIBRARY_DIR ${LibTorch_CPU_LIBRARY} DIRECTORY)
  add_library(coppice::torch INTERFACE IMPORTED)
  target_include_directories(coppice::torch SYSTEM INTERFACE
    ${LibTorch_INCLUDE_DIR} ${LibTorch_INCLUDE_DIR}/torch/csrc/api/include)
  target_link_libraries(coppice::torch INTERFACE ${LibTorch_CPU_LIBRARY} ${LibTorch_C10_LIBRARY})
  # The CPU library of a CUDA wheel needs libcudart and libcupti, which lie in folders of their own.
  file(GLOB _libtorch_nvidia ${LibTorch_LIBRARY_DIR}/../../nvidia/*/lib)
  foreach(_dir IN LISTS _libtorch_nvidia)
    target_link_options(coppice::torch INTERFACE "LINKER:-rpath-link,${_dir}")
  endforeach()
  if(EXISTS ${LibTorch_LIBRARY_DIR}/libtorch_cuda.so)
    set(LibTorch_CUDA TRUE)
  else()
    set(LibTorch_CUDA FALSE)
  endif()
endif()
mark_as_advanced(LibTorch_INCLUDE_DIR LibTorch_CPU_LIBRARY LibTorch_C10_LIBRARY)
