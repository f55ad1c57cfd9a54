#include <coppice/judging.h>

namespace coppice {

void note_choice_by_evaluation(const std::string& where, const std::string& what, Context& context) {
    if (context.data.validation || !context.data.test || !context.evaluate || context.facts.contains("chosen_on"))
        return;
    context.facts["chosen_on"] = "test data";
    context.log->warning(where + ": " + what + (what.back() == 's' ? " are" : " is") +
                         " chosen on the test data, on which the result then looks better than on new data. Give "
                         "data: {validation: ...} to choose on other examples");
}

}  // namespace coppice
