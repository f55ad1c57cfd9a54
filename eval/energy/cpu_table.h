/// The CPUs whose power the CPU-time model knows.
#pragma once

#include <string>
#include <vector>

namespace coppice::eval {

struct CpuRow {
    const char* name;  ///< as normalized_cpu_name() gives it
    double watts;      ///< thermal design power of the package
    int cores;         ///< physical
};
const std::vector<CpuRow>& cpu_rows();

/// The maker's name of a CPU without decoration: "Intel(R) Xeon(R) CPU E5-2686 v4 @ 2.30GHz" is "Intel Xeon E5-2686
/// v4".
std::string normalized_cpu_name(const std::string& name);

}  // namespace coppice::eval
