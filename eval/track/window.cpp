// Windows of energy over any work of this process.
#include <coppice/track.h>

#include <algorithm>

namespace coppice::eval {
namespace {

// Windows that this thread has open, outermost first.
struct Open {
    const EnergyLog* log;
    const EnergyWindow* window;
    std::string name;
};
thread_local std::vector<Open> t_open;

}  // namespace

Json Usage::to_json() const {
    return {{"name", name},
            {"started", started},
            {"seconds", seconds.to_json()},
            {"cpu_seconds", cpu_s.to_json()},
            {"energy_j", energy_j.to_json()},
            {"power_w", power_w.to_json()},
            {"carbon_g", carbon_g.to_json()}};
}

EnergyLog::EnergyLog(EnergyOptions options, Grid grid, double pue)
    : options_(std::move(options)), grid_(std::move(grid)), pue_(pue) {
    options_.source = make_energy_meter(options_)->name();  // "auto" looks at every source: once is enough
}

std::vector<Usage> EnergyLog::finished() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return finished_;
}

EnergyWindow::EnergyWindow(std::shared_ptr<EnergyLog> log, const std::string& name)
    : log_(std::move(log)), name_(name), meter_(make_energy_meter(log_->options_)) {
    for (auto open = t_open.rbegin(); open != t_open.rend(); ++open)
        if (open->log == log_.get()) {
            name_ = open->name + "/" + name;
            break;
        }
    t_open.push_back({log_.get(), this, name_});
    wall_ = wall_seconds();
    unix_ = unix_seconds();
    cpu_ = log_->options_.cpu_clock ? log_->options_.cpu_clock() : cpu_seconds();
    meter_->start();
}

EnergyWindow::~EnergyWindow() {
    stop();
}

Usage EnergyWindow::read() const {
    if (result_) return *result_;
    Usage usage;
    usage.name = name_;
    usage.started = unix_;
    usage.energy_j = meter_->read();
    usage.seconds = Figure::measured(wall_seconds() - wall_, "s", "wall clock");
    usage.cpu_s = Figure::measured((log_->options_.cpu_clock ? log_->options_.cpu_clock() : cpu_seconds()) - cpu_, "s",
                                   log_->options_.cpu_clock ? "CPU time of the process tree"
                                                            : "CPU time of the process and its finished children");
    usage.power_w = quotient(usage.energy_j, usage.seconds, "W", "energy / time; " + usage.energy_j.method);
    usage.carbon_g = carbon_g(usage.energy_j, log_->grid(), log_->pue(), unix_, unix_seconds());
    return usage;
}

Usage EnergyWindow::stop() {
    if (result_) return *result_;
    result_ = read();
    meter_->stop();
    t_open.erase(std::remove_if(t_open.begin(), t_open.end(), [this](const Open& open) { return open.window == this; }),
                 t_open.end());
    std::lock_guard<std::mutex> lock(log_->mutex_);
    log_->finished_.push_back(*result_);
    return *result_;
}

}  // namespace coppice::eval
