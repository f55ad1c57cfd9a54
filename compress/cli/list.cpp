// coppice list: every table of every module; one name with its options.
#include <coppice/error.h>

#include <iostream>

#include "commands.h"
#include "modules.h"

namespace coppice::cli {
namespace {

Json options_json(const Listed& row, std::string& note) {
    Json options = Json::array();
    for (const auto& asked : row.options(note))
        options.push_back(
            {{"name", asked.name}, {"kind", asked.kind}, {"default", asked.default_text}, {"help", asked.help}});
    return options;
}

void print_row(const Family& family, const Listed& row) {
    std::string note;
    const auto options = row.options(note);
    std::cout << row.name << "  (" << family.name << ")\n  " << wrapped(row.summary, 98, 2)
              << "\n  in a recipe: " << family.place << "\n";
    if (!note.empty()) std::cout << "  without options: " << wrapped(note, 98, 2) << "\n";
    if (options.empty()) {
        std::cout << "  It has no options.\n";
        return;
    }
    std::cout << "\n";
    Table table{{"option", "value", "default", "meaning"}, {}, {}};
    for (const auto& asked : options)
        table.rows.push_back(
            {asked.name, asked.kind, asked.default_text.empty() ? "-" : asked.default_text, asked.help});
    std::cout << table.text();
}

}  // namespace

int run_list(const Arguments& arguments) {
    CommandLine line(
        "list", "[FAMILY | NAME] [options]",
        "Lists what a recipe can name: stages, losses, metrics, data formats, criteria and so on. For one name, its\n"
        "options with their defaults.",
        "  coppice list\n  coppice list criterion\n  coppice list prune.channel\n");
    line.add()("json", "as JSON, with all options of all names");
    if (!line.parse(arguments, "name")) return kDone;
    const auto names = line.texts("name");
    if (names.size() > 1) line.fail("more than one name is given: " + names[1]);
    const auto families = all_families();

    std::vector<std::string> known;
    std::vector<const Family*> shown;
    std::vector<std::pair<const Family*, const Listed*>> rows;
    for (const auto& family : families) {
        known.push_back(family.name);
        if (names.empty() || names[0] == family.name || names[0] == family.name + "s") shown.push_back(&family);
        for (const auto& row : family.rows) {
            known.push_back(row.name);
            if (!names.empty() && row.name == names[0]) rows.emplace_back(&family, &row);
        }
    }
    if (shown.empty() && rows.empty()) throw_unknown("coppice list", "name", names[0], known);

    if (line.given("json")) {
        Json out = Json::array();
        const auto add = [&](const Family& family, const Listed& row) {
            std::string note;
            Json entry = {
                {"family", family.name}, {"name", row.name}, {"summary", row.summary}, {"place", family.place}};
            entry["options"] = options_json(row, note);
            out.push_back(entry);
        };
        for (const auto* family : shown)
            for (const auto& row : family->rows) add(*family, row);
        for (const auto& [family, row] : rows) add(*family, *row);
        std::cout << out.dump(2) << "\n";
        return kDone;
    }
    for (const auto* family : shown) {
        std::cout << (family == shown.front() ? "" : "\n") << family->name << "  -  " << family->place << "\n";
        size_t width = 0;
        for (const auto& row : family->rows) width = std::max(width, row.name.size());
        for (const auto& row : family->rows)
            std::cout << "  " << row.name << std::string(width - row.name.size() + 2, ' ')
                      << wrapped(row.summary, 100, width + 4) << "\n";
    }
    for (size_t i = 0; i < rows.size(); ++i) {
        if (i) std::cout << "\n";
        print_row(*rows[i].first, *rows[i].second);
    }
    if (names.empty()) std::cout << "\nOptions of one of them: coppice list NAME\n";
    return kDone;
}

}  // namespace coppice::cli
