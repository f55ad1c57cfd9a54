// Numbers and words for people: the same in all renderings.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <coppice/registry.h>

namespace coppice::eval::report {

// What a figure of measurement.json holds. `value` is empty exactly when provenance is "unavailable".
struct Figure {
    std::optional<double> value;
    std::string unit, provenance = "unavailable", method, reason;
    std::optional<std::pair<double, double>> interval;
    std::optional<std::pair<double, double>> systematic_ratio;
};

// Reading JSON that somebody else wrote: absent and mistyped members are null, never an exception.
const Json& member(const Json& object, const std::string& key);
std::string text_of(const Json& value);  // strings as they are, null as "", numbers and the rest as JSON
std::string text_member(const Json& object, const std::string& key, const std::string& fallback = {});
std::optional<double> number_member(const Json& object, const std::string& key);
Figure figure_of(const Json& json);  // of anything that is no figure: unavailable
Json to_json(const Figure& figure);

// Of several provenances the weakest: measured > derived > modelled > assumed > unavailable.
std::string weakest(const std::string& a, const std::string& b);
const std::vector<std::string>& provenances();
// One letter-like sign per provenance, told apart without colour.
std::string provenance_mark(const std::string& provenance);
std::string provenance_meaning(const std::string& provenance);

// "1.09", "0.00312", "40.8": `significant` digits, no exponent below 1e9, independent of the locale.
std::string number(double value, int significant = 3);
std::string fixed(double value, int decimals);
// Shortest text that reads back as the same double; for files read by programs.
std::string exact(double value);
// "1.09 MB", "3.40 ms", "40.8 M", "0.45 µg": decimal prefixes.
std::string quantity(double value, const std::string& unit);
std::string quantity(const Figure& figure);  // an en dash when unavailable
// "5.3×": two digits, three below 2.
std::string factor(double ratio);
std::string plural(size_t count, const std::string& one, const std::string& many);

// "5.3× smaller", "1.2× larger", "the same": `value` against `baseline`, both lower is better.
struct Words {
    std::string better, worse;
};
std::string compared(double value, double baseline, const Words& words);

// What a reader has to know of a stage marked as simulated.
inline const char* const kSimulatedMeans =
    "simulated: it computes in wider numbers what integers of so few bits would give; such integers would be smaller "
    "and may be "
    "faster than what is measured here";

std::string escape_html(const std::string& text);      // & < > " ' and control characters
std::string escape_markdown(const std::string& text);  // a table cell: no pipe, line break, tag or emphasis
std::string printable(const std::string& text);        // control characters (escape sequences of a terminal) replaced
size_t columns(const std::string& utf8);               // code points
std::string shortened(const std::string& utf8, size_t width);

}  // namespace coppice::eval::report
