/// Makers of the energy sources; registry.cpp lists them.
#pragma once

#include <coppice/eval.h>

namespace coppice::eval {

EnergySource rapl_source();
EnergySource cpu_time_source();
EnergySource no_source();

}  // namespace coppice::eval
