/// The report: what a run (or several) did to quality and to the measures of greenness, as HTML, JSON, CSV, Markdown
/// and a table for the terminal; and the Pareto front behind its picture. Reads the files that a run directory holds,
/// nothing else.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <coppice/registry.h>

namespace coppice::eval {

// ---------------------------------------------------------------------------------------------------------- Pareto
// front

/// A number with its interval, low <= value <= high; all three equal where nothing is uncertain (a file's size).
struct Uncertain {
    double value = 0, low = 0, high = 0;
    Uncertain() = default;
    Uncertain(double exact) : value(exact), low(exact), high(exact) {}  // NOLINT: a number is an exact figure
    Uncertain(double value_, double low_, double high_) : value(value_), low(low_), high(high_) {}
};

/// A point of a Pareto set: one coordinate per axis, LOWER is better on every axis (negate a quality).
using ParetoPoint = std::vector<Uncertain>;

/// front: no other point is as good on every axis and better on one. tied: another one is, but the intervals overlap on
/// an axis, so that it cannot be claimed. dominated: another one is better beyond the uncertainty.
enum class ParetoStatus { kFront, kTied, kDominated };

/// a is as good on every axis and better on one, with certainty: on each axis a.high <= b.low, on one a.high < b.low.
/// Exact points: ordinary dominance. @throws InvalidArgument on points with different numbers of axes.
bool dominates(const ParetoPoint& a, const ParetoPoint& b);

/// As dominates(), by the values alone.
bool dominates_in_value(const ParetoPoint& a, const ParetoPoint& b);

/// One status per point. Equal points are all on the front. @throws InvalidArgument when a coordinate is NaN or low >
/// high.
std::vector<ParetoStatus> pareto_status(const std::vector<ParetoPoint>& points);

/// Volume between the points and `reference` (lower is better; a point that is not better than the reference on every
/// axis adds nothing), by slicing along the last axis: exact for any number of axes, meant for fewer than five and some
/// hundred points. (Hypervolume by slicing objectives: While et al., IEEE Trans. Evol. Comp. 10(1), 2006.)
double hypervolume(const std::vector<std::vector<double>>& points, const std::vector<double>& reference);

/// Index into `front` of the point farthest below the straight line between the two ends, after both axes are scaled to
/// [0, 1] (Das, Structural Optimization 18, 1999). None with fewer than three different points or where no point lies
/// below the line.
/// @param front  points (x, y), lower is better on both
std::optional<size_t> knee(const std::vector<std::pair<double, double>>& front);

// ----------------------------------------------------------------------------------------------------------------
// report

/// Reads run directories into one report (format "coppice-report", version 1; see report_schema()). A run that is still
/// going or was cut off is reported as far as its stages are intact; what is missing or damaged is named under
/// "warnings".
/// @param runs   one or more run directories
/// @param title  empty: made from the model's file name
/// @throws IoError when a folder does not exist or no run holds an intact stage; InvalidArgument when `runs` is empty
Json collect_report(const std::vector<std::filesystem::path>& runs, const std::string& title = {});

struct ReportOptions {
    std::string title;
    /// Axes of the picture: "quality", or the key of a measure ("file_bytes", "latency_b1_t2"). Empty: energy or the
    /// next best measure that all stages have, across; quality, up.
    std::string x, y;
};
/// @throws InvalidArgument for an axis that no stage has, naming those there are
Json collect_report(const std::vector<std::filesystem::path>& runs, const ReportOptions& options);

/// The renderings. Each is a pure function of the JSON: same report, same bytes; everything that came from a file is
/// escaped.
/// @throws InvalidArgument when `report` is not a coppice-report of a version that is known here
std::string html(const Json& report);  ///< one page without any outside reference, at most 500 kB
std::string csv(
    const Json& report);  ///< RFC 4180; one row per stage; value, unit, provenance, low, high of each figure
std::string markdown(const Json& report);  ///< a section for a README or a model card
/// The picture by itself, for papers and README files: any two measures or quality, as the report was made for.
std::string svg(const Json& report);
/// A model card of a run's final model: YAML front matter that hubs read (model-index, co2_eq_emissions in grams), what
/// was done, quality, cost, use, limits. @throws InvalidArgument where the report is not about one model
std::string model_card(const Json& report);
/// Plain text of at most 100 columns for the end of a run: one line per stage.
std::string terminal_table(const Json& report);

/// Names of the members of two fingerprints (`environment` in measurement.json) that differ and that times depend on:
/// all but memory_bytes. What one of them does not have, because an older program wrote it, is not compared.
std::vector<std::string> environment_differences(const Json& one, const Json& other);

/// One sentence: what became of quality, size, speed and energy, and on which machine.
std::string summary_sentence(const Json& report);

/// "Ratios of times are known to ±0.3 to 1.1 % (asked for: 2 %)." Of measurement.json files; empty where none says.
std::string reached_sentence(const std::vector<const Json*>& measurements);

/// JSON schema (draft 2020-12) of the report.
const Json& report_schema();

// -------------------------------------------------------------------------------------------------------- comparison

/// Is B better than A, in what, how sure? One verdict per measure: "better", "worse", "no difference shown" (the 95 %
/// interval holds no difference, or there is none), "not comparable" (other test data, environment, grid or energy
/// source, with the reason). The best pairing that there is decides: `direct` where one is the other's baseline,
/// `baseline` where both were measured in pairs against the same model, `unpaired` else; counts and bytes are `exact`,
/// and differences of them below 2 % count as none.
/// The verdict on the whole is "better" or "worse" where all that differs agrees, "trade-off" where it does not.
/// @param a, b  run directories (their final model is meant), or folders of single stages in them
/// @return format "coppice-comparison", version 1; see comparison_schema()
/// @throws IoError when a folder does not exist, holds no intact run or is an unfinished stage; InvalidArgument when
///         both are the same, or a folder holds several models of which none is the result
Json compare_runs(const std::filesystem::path& a, const std::filesystem::path& b);
/// A comparison as a table of at most 100 columns, and the answer in words.
std::string comparison_text(const Json& comparison);
const Json& comparison_schema();

/// The formats write_report() knows: card, csv, html, json, md, png (the picture; needs rsvg-convert, inkscape or
/// chromium), svg.
std::vector<std::string> report_formats();
/// Those written where none is asked for: csv, html, json, md.
std::vector<std::string> default_report_formats();
/// Before any work. @param where  of the list, for the error
/// @throws InvalidArgument on an unknown format, or png where no program can make one
void check_report_formats(const std::vector<std::string>& formats, const std::string& where);

/// Writes report.<format> (card: model-card.md) for each format into `folder`, each by rename. @return the files
/// written, in the order asked for.
/// @throws InvalidArgument as check_report_formats(), IoError when a file cannot be written
std::vector<std::filesystem::path> write_report(const Json& report, const std::filesystem::path& folder,
                                                const std::vector<std::string>& formats = default_report_formats());

}  // namespace coppice::eval
