// A time series in a CSV file, cut into windows: input_length rows in, the next horizon rows out.
#include <coppice/error.h>

#include <charconv>
#include <cmath>
#include <cstring>

#include "data/formats.h"

namespace coppice::formats {
namespace {

/// Fields of one line; quotes may hold delimiters, and doubled quotes.
void split_line(std::string_view line, char delimiter, std::vector<std::string>& fields) {
    fields.clear();
    fields.emplace_back();
    bool quoted = false;
    for (size_t i = 0; i < line.size(); ++i) {
        const char c = line[i];
        if (c == '"') {
            if (quoted && i + 1 < line.size() && line[i + 1] == '"')
                fields.back() += line[i++];
            else
                quoted = !quoted;
        } else if (c == delimiter && !quoted) {
            fields.emplace_back();
        } else {
            fields.back() += c;
        }
    }
}

std::optional<double> parse_number(const std::string& text) {
    const auto begin = text.find_first_not_of(" \t+"), end = text.find_last_not_of(" \t");
    if (begin == std::string::npos || begin > end) return std::nullopt;
    double value = 0;
    const auto [stop, error] = std::from_chars(text.data() + begin, text.data() + end + 1, value);
    if (error != std::errc() || stop != text.data() + end + 1 || !std::isfinite(value)) return std::nullopt;
    return value;
}

struct Table {
    std::vector<std::string> names;
    std::vector<size_t> numeric;  ///< columns whose first value is a number
    std::vector<std::vector<std::string>> rows;
    std::vector<int64_t> lines;  ///< line of each row, from 1
};

Table parse(const File& file, char delimiter) {
    Table table;
    std::vector<std::string> fields;
    std::string_view rest(file.bytes);
    if (rest.substr(0, 3) == "\xef\xbb\xbf") rest.remove_prefix(3);  // byte order mark
    for (int64_t line = 1; !rest.empty(); ++line) {
        const auto end = rest.find('\n');
        auto text = rest.substr(0, end);
        rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
        if (!text.empty() && text.back() == '\r') text.remove_suffix(1);
        if (text.find_first_not_of(" \t") == std::string_view::npos) continue;
        split_line(text, delimiter, fields);
        if (table.names.empty()) {
            const bool header =
                std::none_of(fields.begin(), fields.end(), [](const auto& f) { return parse_number(f).has_value(); });
            for (size_t i = 0; i < fields.size(); ++i) table.names.push_back(header ? fields[i] : std::to_string(i));
            if (header) continue;
        }
        if (fields.size() != table.names.size())
            throw IoError(file.path + " line " + std::to_string(line),
                          "has " + std::to_string(fields.size()) + " columns, the first line " +
                              std::to_string(table.names.size()),
                          "The file may be truncated here, or the delimiter wrong.");
        table.rows.push_back(fields);
        table.lines.push_back(line);
    }
    if (table.rows.empty()) throw IoError(file.path, "holds no row of values", "");
    for (size_t i = 0; i < table.names.size(); ++i)
        if (parse_number(table.rows.front()[i])) table.numeric.push_back(i);
    return table;
}

std::vector<size_t> choose(const Table& table, const std::vector<std::string>& names, const std::string& option,
                           const Options& options) {
    std::vector<size_t> columns;
    for (const auto& name : names) {
        const auto found = std::find(table.names.begin(), table.names.end(), name);
        if (found == table.names.end()) {
            std::string present;
            for (const auto& known : table.names) present += (present.empty() ? "" : ", ") + known;
            throw options.error(option, "names \"" + name + "\", no column of the file",
                                "Columns present: " + present + ".");
        }
        columns.push_back(static_cast<size_t>(found - table.names.begin()));
    }
    return columns;
}

class Windows final : public Dataset {
public:
    std::vector<float> inputs, targets;  ///< rows x in_columns, rows x out_columns
    int64_t in_columns = 0, out_columns = 0, input_length = 0, horizon = 0, stride = 1, count = 0;
    std::string text, hash;

    int64_t size() const override { return count; }
    std::string description() const override { return text; }
    std::string fingerprint() const override { return hash; }

    Batch batch(const std::vector<int64_t>& indices) const override {
        check_indices(indices, count, text);
        const auto n = static_cast<int64_t>(indices.size());
        auto input = at::empty({n, input_length, in_columns}, at::kFloat);  // [N, T_in, C_in]
        auto target = at::empty({n, horizon, out_columns}, at::kFloat);     // [N, T_out, C_out]
        float *in = input.data_ptr<float>(), *out = target.data_ptr<float>();
        const int64_t in_size = input_length * in_columns, out_size = horizon * out_columns;
        for (const int64_t index : indices) {
            const int64_t row = index * stride;
            std::memcpy(in, inputs.data() + row * in_columns, static_cast<size_t>(in_size) * sizeof(float));
            std::memcpy(out, targets.data() + (row + input_length) * out_columns,
                        static_cast<size_t>(out_size) * sizeof(float));
            in += in_size, out += out_size;
        }
        Batch batch;
        batch.inputs.emplace_back(input);
        batch.target = target;
        return batch;
    }
};

}  // namespace

std::unique_ptr<Dataset> csv(Options& options) {
    const auto common = read_common(options);
    const auto paths = read_paths(options, common);
    if (paths.size() != 1) throw options.error("path", "must be one file", "");
    const auto delimiter = options.text("delimiter", ",", "one character, or tab");
    if (delimiter.size() != 1 && delimiter != "tab")
        throw options.error("delimiter", "must be one character, or tab", "");
    auto names =
        options.texts("columns", {}, "input columns by name (by number where there is no header); all numeric ones");
    auto target_names = options.texts("targets", {}, "columns to forecast; as columns");
    const int64_t input_length =
        options.integer("input_length", 96, 1, INT64_MAX, "rows a window begins with: the input");
    const int64_t horizon = options.integer("horizon", 96, 1, INT64_MAX, "rows to forecast");
    const int64_t stride = options.integer("stride", 1, 1, INT64_MAX, "rows from one window to the next");
    const auto fit = options.integers("standardise", {},
                                      "[from, to): rows whose mean and population standard deviation "
                                      "standardise every column; none: values as they are");

    const auto file = read_file(paths[0]);
    const auto table = parse(file, delimiter == "tab" ? '\t' : delimiter[0]);
    const auto total = static_cast<int64_t>(table.rows.size());
    auto in = choose(table, names, "columns", options);
    if (in.empty()) in = table.numeric;
    if (in.empty()) throw IoError(file.path, "has no column of numbers", "Check the delimiter.");
    auto out = choose(table, target_names, "targets", options);
    if (out.empty()) out = in;
    names.clear(), target_names.clear();
    for (const size_t column : in) names.push_back(table.names[column]);
    for (const size_t column : out) target_names.push_back(table.names[column]);
    options.resolve("columns", names);
    options.resolve("targets", target_names);
    if (!fit.empty() && (fit.size() != 2 || fit[0] < 0 || fit[0] >= fit[1] || fit[1] > total))
        throw options.error("standardise", "must be [from, to) within the " + std::to_string(total) + " rows", "");

    const auto rows = read_rows(options, total,
                                "rows [from, to) to forecast; windows reach back input_length rows "
                                "where there are that many");
    const int64_t from = rows.first, to = rows.second;  // not a structured binding: lambdas capture them
    const int64_t first = std::max<int64_t>(0, from - input_length);
    auto dataset = std::make_unique<Windows>();
    dataset->input_length = input_length, dataset->horizon = horizon, dataset->stride = stride;
    dataset->in_columns = static_cast<int64_t>(in.size()), dataset->out_columns = static_cast<int64_t>(out.size());
    if (to - first < input_length + horizon)
        throw options.error(
            "rows",
            "leave " + std::to_string(to - first) + " rows, one window takes " + std::to_string(input_length + horizon),
            "Shorten input_length or horizon.");
    dataset->count = (to - first - input_length - horizon) / stride + 1;

    // Each column in float64: standardised there, stored as float32.
    const auto fill = [&](const std::vector<size_t>& columns, std::vector<float>& values) {
        values.resize(static_cast<size_t>(to - first) * columns.size());
        std::vector<double> column(static_cast<size_t>(total));
        for (size_t c = 0; c < columns.size(); ++c) {
            for (int64_t row = 0; row < total; ++row) {
                const auto value = parse_number(table.rows[row][columns[c]]);
                if (!value)
                    throw IoError(
                        file.path + " line " + std::to_string(table.lines[row]),
                        "column " + table.names[columns[c]] + " is \"" + table.rows[row][columns[c]] + "\", no number",
                        "Fill gaps first, or choose other columns.");
                column[row] = *value;
            }
            double mean = 0, deviation = 1;
            if (!fit.empty()) {
                const auto rows = static_cast<double>(fit[1] - fit[0]);
                for (int64_t row = fit[0]; row < fit[1]; ++row) mean += column[row] / rows;
                double square = 0;
                for (int64_t row = fit[0]; row < fit[1]; ++row) square += (column[row] - mean) * (column[row] - mean);
                deviation = std::sqrt(square / rows);
                if (deviation == 0) deviation = 1;  // a constant column becomes zero, as in scikit-learn
            }
            for (int64_t row = first; row < to; ++row)
                values[static_cast<size_t>(row - first) * columns.size() + c] =
                    static_cast<float>((column[row] - mean) / deviation);
        }
    };
    fill(in, dataset->inputs);
    fill(out, dataset->targets);
    const auto name = common.name.empty() ? "CSV " + file.path.substr(file.path.rfind('/') + 1) : common.name;
    dataset->text = name + ", " + std::to_string(dataset->count) + " windows";
    dataset->hash = fingerprint_of("csv", {file.sha256}, options);
    return dataset;
}

}  // namespace coppice::formats
