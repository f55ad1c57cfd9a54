// Sums over records. A record is a run directory, a `coppice track` file, or a row of emissions.csv.
#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include <coppice/allocation.h>
#include <coppice/error.h>
#include <coppice/eval.h>
#include <coppice/pipeline.h>

#include "report/text.h"

namespace coppice::eval {
namespace {

namespace fs = std::filesystem;
using report::member;
using report::number_member;
using report::text_member;

constexpr double kJoulesPerKwh = 3.6e6;
constexpr const char* kNone = "(none)";

struct Record {
    std::string shown, identity;  // where it was read; what makes it one of its kind
    std::string project, user;
    std::vector<std::string> tags;
    Figure seconds = Figure::unavailable("s", "not recorded"), energy_j = Figure::unavailable("J", "not recorded"),
           carbon_g = Figure::unavailable("g", "not recorded"), cost;
    double pue = 1;
};

std::vector<std::string> texts(const Json& list) {
    std::vector<std::string> result;
    if (list.is_array())
        for (const auto& item : list)
            if (item.is_string()) result.push_back(item);
    return result;
}

Figure figure_in(const Json& object, const std::string& key, const std::string& unit, const std::string& reason) {
    const Json& json = member(object, key);
    return json.is_object() ? Figure::from_json(json) : Figure::unavailable(unit, reason);
}

// The unavailable is left out; empty when nothing is available.
void add(std::optional<Figure>& total, const Figure& figure, const std::string& method) {
    if (!figure.available()) return;
    total = total ? sum(*total, figure, method) : figure;
    total->method = method;
}

Record of_run(const fs::path& path, std::vector<std::string>& warnings) {
    Record record;
    record.shown = path.string();
    std::error_code failed;
    record.identity = fs::canonical(path, failed).string();
    const Json manifest = read_json(path / "manifest.json");
    if (text_member(manifest, "format") != "coppice-run")
        throw IoError((path / "manifest.json").string(), "is not the manifest of a run", "");
    record.project = text_member(manifest, "project");
    record.user = text_member(manifest, "user");
    record.tags = texts(member(manifest, "tags"));
    if (text_member(manifest, "kind") == "eval") {
        for (Figure* figure : {&record.seconds, &record.energy_j, &record.carbon_g})
            figure->reason = "a comparison of models; its own cost is not recorded";
        return record;
    }
    std::vector<fs::path> stages;
    for (const auto& entry : fs::directory_iterator(path)) {
        const std::string name = entry.path().filename().string();
        const size_t digits = name.find_first_not_of("0123456789");
        if (!entry.is_directory() || digits == 0 || digits == std::string::npos || name[digits] != '-') continue;
        if (name.find_first_not_of('0') == digits) continue;  // the baseline took nothing to make
        if (entry.path().extension() == ".partial" || name.find(".aside-") != std::string::npos) {
            warnings.push_back(entry.path().string() + " is not a finished stage; what it took is not counted.");
            continue;
        }
        stages.push_back(entry.path());
    }
    std::sort(stages.begin(), stages.end());
    std::optional<Figure> seconds, energy, carbon;
    const std::string method = "sum over all finished stages, those not kept included";
    for (const auto& stage : stages) {
        Json measurement;
        try {
            measurement = read_json(stage / "measurement.json");
        } catch (const Error& error) {
            warnings.push_back(stage.string() + " cannot be read, what it took is not counted: " + error.problem() +
                               ".");
            continue;
        }
        const Json& compression = member(measurement, "compression");
        add(seconds, figure_in(compression, "seconds", "s", "not recorded"), method);
        add(energy, figure_in(compression, "energy_j", "J", "not recorded"), method);
        add(carbon, figure_in(compression, "carbon_g", "g", "not recorded"), method);
        record.pue = number_member(member(measurement, "carbon"), "pue").value_or(record.pue);
    }
    if (seconds) record.seconds = *seconds;
    if (energy) record.energy_j = *energy;
    if (carbon) record.carbon_g = *carbon;
    return record;
}

Record of_track(const fs::path& path) {
    const Json json = read_json(path);
    const std::string format = text_member(json, "format");
    if (format != "coppice-track" || number_member(json, "version") != 1.0)
        throw IoError(path.string(),
                      format.empty()
                          ? "is no record of coppice track"
                          : "its format is \"" + format + "\" of version " + report::text_of(member(json, "version")),
                      "Give run directories, files of coppice track --json, or emissions.csv.");
    Record record;
    record.shown = path.string();
    record.identity = text_member(json, "run_id", record.shown);
    record.project = text_member(json, "project");
    record.user = text_member(json, "user");
    record.tags = texts(member(json, "tags"));
    record.seconds = figure_in(json, "seconds", "s", "not recorded");
    record.energy_j = figure_in(json, "energy_j", "J", "not recorded");
    record.carbon_g = figure_in(json, "carbon_g", "g", "not recorded");
    record.pue = number_member(member(json, "carbon"), "pue").value_or(1);
    return record;
}

std::vector<std::vector<std::string>> csv_rows(const std::string& text) {  // RFC 4180
    std::vector<std::vector<std::string>> rows(1, {""});
    bool quoted = false;
    for (size_t i = 0; i < text.size(); ++i) {
        const char c = text[i];
        if (quoted) {
            if (c != '"')
                rows.back().back() += c;
            else if (i + 1 < text.size() && text[i + 1] == '"')
                rows.back().back() += text[++i];
            else
                quoted = false;
        } else if (c == '"') {
            quoted = true;
        } else if (c == ',') {
            rows.back().emplace_back();
        } else if (c == '\n') {
            rows.push_back({""});
        } else if (c != '\r') {
            rows.back().back() += c;
        }
    }
    while (!rows.empty() && rows.back().size() == 1 && rows.back()[0].empty()) rows.pop_back();
    return rows;
}

std::optional<double> number_of(const std::string& text) {
    char* end = nullptr;
    const double value = std::strtod(text.c_str(), &end);
    return text.empty() || *end || !std::isfinite(value) ? std::nullopt : std::optional<double>(value);
}

std::vector<Record> of_csv(const fs::path& path) {
    const auto rows = csv_rows(read_text(path));
    const auto refuse = [&path](const std::string& what) {
        return IoError(path.string(), what, "Give emissions.csv of coppice track --csv or of CodeCarbon.");
    };
    if (rows.empty()) throw refuse("the file is empty");
    std::map<std::string, size_t> columns;
    for (size_t c = 0; c < rows[0].size(); ++c) columns[rows[0][c]] = c;
    for (const char* needed : {"project_name", "duration", "energy_consumed", "emissions"})
        if (!columns.count(needed)) throw refuse("has no column \"" + std::string(needed) + "\"");
    std::vector<Record> records;
    for (size_t r = 1; r < rows.size(); ++r) {
        const auto cell = [&](const std::string& column) -> std::string {
            const auto found = columns.find(column);
            return found == columns.end() || found->second >= rows[r].size() ? "" : rows[r][found->second];
        };
        Record record;
        record.shown = path.string() + " row " + std::to_string(r);
        record.identity = cell("run_id").empty() ? record.shown : cell("run_id");
        record.project = cell("project_name");
        record.user = cell("user");
        const std::string tags = cell("tags") + ";";
        for (size_t at = 0, end; (end = tags.find(';', at)) != std::string::npos; at = end + 1)
            if (end > at) record.tags.push_back(tags.substr(at, end - at));
        record.pue = number_of(cell("pue")).value_or(1);
        // CodeCarbon does not say whether it measured or assumed: no more than modelled is claimed of its rows.
        const auto figure = [&](const char* column, double scale, const char* unit, const char* which) {
            const auto value = number_of(cell(column));
            const std::string provenance = cell(std::string(which) + "_provenance");
            if (!value || *value < 0 || provenance == "unavailable")
                return Figure::unavailable(unit, "column \"" + std::string(column) + "\" holds no value");
            Json json = {{"value", *value * scale},
                         {"unit", unit},
                         {"provenance", provenance.empty() ? "modelled" : provenance},
                         {"method", "column " + std::string(column) + " of " + path.filename().string()}};
            const auto low = number_of(cell(std::string(which) + "_low")),
                       high = number_of(cell(std::string(which) + "_high"));
            if (low && high && *value > 0) json["systematic_ratio"] = {*low / *value, *high / *value};
            return Figure::from_json(json);
        };
        if (const auto seconds = number_of(cell("duration")))
            record.seconds = Figure::measured(*seconds, "s", "column duration of " + path.filename().string());
        record.energy_j = figure("energy_consumed", kJoulesPerKwh, "J", "energy");
        record.carbon_g = figure("emissions", 1e3, "g", "emissions");
        records.push_back(std::move(record));
    }
    return records;
}

struct Group {
    size_t records = 0;
    struct Total {
        std::optional<Figure> sum;
        size_t known = 0;
        std::string reason;
        void take(const Figure& figure, const std::string& method) {
            if (figure.available())
                ++known;
            else if (reason.empty())
                reason = figure.reason;
            add(sum, figure, method);
        }
        Json to_json(size_t records, const std::string& unit) const {
            Json json = (sum ? *sum : Figure::unavailable(unit, reason.empty() ? "no records" : reason)).to_json();
            if (sum)
                json["method"] =
                    "sum over " + std::to_string(known) + " of " + report::plural(records, "record", "records");
            json["records"] = known;
            return json;
        }
    } seconds, energy, carbon, cost;

    void take(const Record& record, bool money) {
        ++records;
        seconds.take(record.seconds, "sum");
        energy.take(record.energy_j, "sum");
        carbon.take(record.carbon_g, "sum");
        if (money) cost.take(record.cost, "sum");
    }
    Json to_json(const std::string& name, const std::string& currency, bool money) const {
        Json json = {{"name", name},
                     {"records", records},
                     {"seconds", seconds.to_json(records, "s")},
                     {"energy_j", energy.to_json(records, "J")},
                     {"carbon_g", carbon.to_json(records, "g")}};
        if (money) json["cost"] = cost.to_json(records, currency);
        return json;
    }
};

constexpr const char* kSchema = R"json({
  "$schema": "https://json-schema.org/draft/2020-12/schema",
  "title": "Coppice cost allocation, version 1",
  "type": "object",
  "required": ["format", "version", "group_by", "groups", "total", "warnings"],
  "properties": {
    "format": {"const": "coppice-allocation"},
    "version": {"const": 1},
    "group_by": {"enum": ["project", "user", "tag"]},
    "groups": {"type": "array", "items": {"$ref": "#/$defs/group"}},
    "total": {"description": "each record once, whatever its tags", "$ref": "#/$defs/group"},
    "warnings": {"type": "array", "items": {"type": "string"}}
  },
  "$defs": {
    "figure": {
      "type": "object",
      "required": ["value", "unit", "provenance", "records"],
      "properties": {
        "value": {"type": ["number", "null"]},
        "unit": {"type": "string"},
        "provenance": {"enum": ["measured", "derived", "modelled", "assumed", "unavailable"]},
        "records": {"description": "those that have the figure", "type": "integer"}
      }
    },
    "group": {
      "type": "object",
      "required": ["name", "records", "seconds", "energy_j", "carbon_g"],
      "properties": {
        "name": {"type": "string"},
        "records": {"type": "integer"},
        "seconds": {"$ref": "#/$defs/figure"},
        "energy_j": {"$ref": "#/$defs/figure"},
        "carbon_g": {"$ref": "#/$defs/figure"},
        "cost": {"$ref": "#/$defs/figure"}
      }
    }
  }
})json";

std::string padded(const std::string& text, size_t width, bool right) {
    const size_t length = report::columns(text);
    const std::string space(length < width ? width - length : 0, ' ');
    return right ? space + text : text + space;
}

}  // namespace

Json allocate(const std::vector<fs::path>& sources, const AllocationOptions& options) {
    require_known("--group-by", "grouping", options.group_by, {"project", "tag", "user"});
    if (sources.empty())
        throw InvalidArgument("report", "nothing to sum up is given",
                              "Name run directories, files of coppice track --json, or emissions.csv.");
    const bool money = options.price_per_kwh.has_value();
    std::vector<std::string> warnings;
    std::vector<Record> records;
    std::set<std::string> seen;
    for (const auto& source : sources) {
        std::vector<Record> found;
        std::error_code ignored;
        if (fs::is_directory(source, ignored))
            found.push_back(of_run(source, warnings));
        else if (source.extension() == ".csv")
            found = of_csv(source);
        else
            found.push_back(of_track(source));
        for (auto& record : found) {
            if (!seen.insert(record.identity).second) {
                warnings.push_back(record.shown + " was counted already and is left out.");
                continue;
            }
            if (money)
                record.cost = cost(record.energy_j, record.pue, *options.price_per_kwh, record.carbon_g,
                                   options.price_per_tonne, options.currency);
            records.push_back(std::move(record));
        }
    }
    std::map<std::string, Group> groups;
    Group total;
    for (const auto& record : records) {
        std::vector<std::string> names = record.tags;
        if (options.group_by != "tag") names = {options.group_by == "user" ? record.user : record.project};
        std::sort(names.begin(), names.end());
        names.erase(std::unique(names.begin(), names.end()), names.end());
        if (names.empty()) names = {""};
        for (const auto& name : names) groups[name.empty() ? kNone : name].take(record, money);
        total.take(record, money);
    }
    Json json = {{"format", "coppice-allocation"}, {"version", 1},    {"group_by", options.group_by},
                 {"groups", Json::array()},        {"total", Json()}, {"warnings", warnings}};
    std::vector<const std::pair<const std::string, Group>*> order;
    for (const auto& group : groups) order.push_back(&group);
    std::stable_sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
        const auto energy = [](const Group& group) { return group.energy.sum ? *group.energy.sum->value : -1; };
        return energy(a->second) > energy(b->second);
    });
    for (const auto* group : order)
        json["groups"].push_back(group->second.to_json(group->first, options.currency, money));
    json["total"] = total.to_json("total", options.currency, money);
    return json;
}

std::string allocation_text(const Json& allocation) {
    const bool money = allocation.at("total").contains("cost");
    std::vector<std::vector<std::string>> rows = {{allocation.at("group_by"), "records", "time", "energy", "carbon"}};
    if (money) rows[0].push_back("cost");
    const auto cell = [](const Json& group, const char* key) {
        const auto figure = report::figure_of(group.at(key));
        if (!figure.value) return std::string("–");
        std::string text = std::string(key) == "cost" ? report::number(*figure.value) + " " + figure.unit
                                                      : report::quantity(*figure.value, figure.unit);
        text += " " + report::provenance_mark(figure.provenance);
        const auto known = group.at(key).at("records").get<size_t>(), all = group.at("records").get<size_t>();
        if (known < all) text += " (" + std::to_string(known) + " of " + std::to_string(all) + ")";
        return text;
    };
    std::set<std::string> used;
    const auto row = [&](const Json& group) {
        rows.push_back({report::shortened(report::printable(group.at("name")), 16),
                        std::to_string(group.at("records").get<size_t>()), cell(group, "seconds"),
                        cell(group, "energy_j"), cell(group, "carbon_g")});
        if (money) rows.back().push_back(cell(group, "cost"));
        for (const char* key : {"seconds", "energy_j", "carbon_g", "cost"})
            if (group.contains(key)) used.insert(group.at(key).at("provenance").get<std::string>());
    };
    for (const auto& group : allocation.at("groups")) row(group);
    row(allocation.at("total"));
    std::vector<size_t> widths(rows[0].size());
    for (const auto& cells : rows)
        for (size_t c = 0; c < cells.size(); ++c) widths[c] = std::max(widths[c], report::columns(cells[c]));
    std::string text;
    for (const auto& cells : rows) {
        std::string line;
        for (size_t c = 0; c < cells.size(); ++c) line += (c ? "  " : "") + padded(cells[c], widths[c], c > 0);
        while (!line.empty() && line.back() == ' ') line.pop_back();
        text += line + "\n";
    }
    text += "\n";
    std::string marks;
    for (const auto& name : report::provenances())
        if (used.count(name) && name != "unavailable")
            marks += (marks.empty() ? "" : ", ") + report::provenance_mark(name) + " " + name;
    if (allocation.at("group_by") == "tag") text += "A record counts under each of its tags, in the total once.\n";
    return text + marks + "\n";
}

const Json& allocation_schema() {
    static const Json schema = Json::parse(kSchema);
    return schema;
}

}  // namespace coppice::eval
