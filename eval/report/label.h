// The class of a model's energy, A to G: a sign for readers in a hurry.
#pragma once

#include <optional>
#include <string>

#include "report/view.h"

namespace coppice::eval::report {

// Version 1: energy per inference as a share of the baseline's on the same machine. A class holds its upper bound; what
// is above the last one is G. The steps are factors of 1.2 to 1.8; F holds the baseline and 10 % around it, so that
// noise alone never makes a class of its own. Other bands would be another version: classes stay comparable over time.
constexpr int kClassVersion = 1;
constexpr double kClassBounds[] = {0.2, 0.35, 0.5, 0.7, 0.9, 1.1};  // of A to F

struct EnergyClass {
    char best = 'G', worst = 'G';  // they differ where the ratio's 95 % interval spans classes
    Figure ratio;                  // energy of this / energy of the baseline
};

char class_of_ratio(double ratio);
// None for what has no energy in pairs with, or beside, a baseline's. The method's systematic error is left out: it is
// the same on both sides of the ratio.
std::optional<EnergyClass> energy_class(const Stage& stage);
std::string class_text(const EnergyClass& energy);  // "B", "B to C"
std::string class_bands_text();                     // "A to 20 %, B to 35 %, ..., G above"
Json to_json(const EnergyClass& energy);

}  // namespace coppice::eval::report
