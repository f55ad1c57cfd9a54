/// On which data Context::evaluate judges, for stages that choose by it.
#pragma once

#include <string>

#include <coppice/stage.h>

namespace coppice {

/// Says that `what` ("the channels", "the epoch") is chosen by context.evaluate on the test data, as the program does
/// where the recipe has no validation data: once per stage a warning, and context.facts "chosen_on": "test data". The
/// figures of the result are then better than on data that nobody has seen. Nothing where there are validation data, or
/// no test data, or no evaluate().
void note_choice_by_evaluation(const std::string& where, const std::string& what, Context& context);

}  // namespace coppice
