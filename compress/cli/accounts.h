/// What figures mean in money and in the terms of standards: options that several commands share.
#pragma once

#include <coppice/eval.h>

#include "commands.h"

namespace coppice::cli {

/// The figure at a JSON pointer; unavailable, "not recorded", where there is none.
eval::Figure figure_at(const Json& json, const char* pointer, const char* unit);

/// A number of at least 0 that an option holds as text. @throws InvalidArgument
double number_option(const CommandLine& line, const std::string& name);

/// "12.3 J (6.1 to 36.9), modelled" or "unavailable: ..."; the range holds the method's error, too.
std::string figure_text(const eval::Figure& figure, const std::function<std::string(double)>& text);
/// "12.3 J", "1.23 Wh"; "45 mg", "1.2 g", "3.4 kg"; "0.12 EUR".
std::string energy_text(double joules);
std::string carbon_text(double grams);

class Accounts {
public:
    /// Adds --price, --carbon-price, --currency, --embodied-kg, --lifetime-years, --machine-share, --green-algorithms,
    /// --memory-gb, --psf. @param job  also --units and --unit: what a whole job is worth, for the SCI
    static void add_options(CommandLine& line, bool job);
    /// @throws InvalidArgument also where an option is given without the one that it belongs to
    Accounts(const CommandLine& line, bool job);

    bool asked() const { return price_ || embodied_g_ || units_ || green_algorithms_; }

    /// What a job took, or what inferences take.
    struct Work {
        eval::Figure energy_j, carbon_g, seconds;
        eval::Grid grid;
        double pue = 1;
        bool pue_given = true;             ///< else Green Algorithms has its own default
        double cores = 1, core_usage = 1;  ///< busy share of them
        eval::Environment environment;
        double units = 1;  ///< functional units that this is
        std::string unit = "run";
    };
    /// {"cost", "sci_g", "green_algorithms": {"energy_j", "carbon_g"}}: figures, as far as they are asked for.
    Json of(Work work) const;
    /// One inference, as measurement.json has it; what it lacks is unavailable.
    static Work inference(const Json& measurement);
    /// The same per million inferences (the SCI per inference) of a measurement.json.
    Json of_measurement(const Json& measurement) const;
    /// One line per figure of such an object: name and text.
    std::vector<std::pair<std::string, std::string>> lines(const Json& accounts) const;

private:
    std::optional<double> price_, embodied_g_, units_, memory_gb_;
    double carbon_price_ = 0, lifetime_s_ = 0, machine_share_ = 1, psf_ = 1;
    std::string currency_, unit_;
    bool green_algorithms_ = false;
};

}  // namespace coppice::cli
