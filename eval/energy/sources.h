/// Makers of the energy sources; registry.cpp lists them.
#pragma once

#include <coppice/eval.h>

namespace coppice::eval {

EnergySource amd_smi_source();
EnergySource battery_source();
EnergySource cpu_time_source();
EnergySource hwmon_source();
EnergySource meter_csv_source();
EnergySource no_source();
EnergySource nvml_source();
EnergySource perf_source();
EnergySource rapl_source();

/// Joules that a meter's readings (seconds since 1970, watts) give for a window, or why they do not cover it.
Figure metered_energy(const std::vector<std::pair<double, double>>& series, double from, double to);

}  // namespace coppice::eval
