add_executable(int8_models int8_models.cpp)
target_link_libraries(int8_models PRIVATE coppice::quantize ZLIB::ZLIB)
coppice_target(int8_models)
