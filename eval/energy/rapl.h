/// Linux powercap energy counters, as a reader that is given the time, so that wraps and gaps can be tested.
#pragma once

#include "energy/polled.h"

namespace coppice::eval {

/// Zones of <root>/sys/class/powercap: packages and their dram are added; core and uncore lie inside the package; psys
/// contains it and is used only where there is no package; a package that appears twice (MSR and MMIO) counts once, and
/// so do dies whose counters mirror each other (AMD).
class RaplReader final : public EnergyReader {
public:
    explicit RaplReader(const std::filesystem::path& root);

    struct Zone {
        std::filesystem::path folder;
        std::string name;              ///< "package-0", "package-0/dram"
        std::optional<double> max_uj;  ///< at which the counter wraps
        std::string failure;           ///< why it is not counted; empty: counted
        double first_uj = 0, last_uj = 0, total_uj = 0;
        double last_time = 0, changed_time = 0;
    };
    const std::vector<Zone>& zones() const { return zones_; }
    /// Is there at least one package (or psys), and is every package readable?
    bool usable() const { return why_not().empty(); }
    std::string why_not() const;
    bool permission_denied() const { return permission_denied_; }

    void start(double now) override;
    /// Adds what passed since the last call. Must be called within poll_seconds() of it, or the window becomes invalid.
    void sample(double now) override;
    /// Joules since start(), or why not. A package that fails takes the total with it, dram only itself.
    Figure total(double now) const override;
    /// A quarter of the time in which the fastest counter could wrap at 1 kW.
    double poll_seconds() const override;
    std::string method() const override;
    bool counts_memory() const override;

private:
    bool is_package(const Zone& zone) const { return zone.name.find('/') == std::string::npos; }
    bool mirrors_another(size_t index) const;
    std::vector<Zone> zones_;
    double start_time_ = 0;
    bool permission_denied_ = false;
    std::string discovery_failure_;
};

}  // namespace coppice::eval
