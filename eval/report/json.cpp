// The report as a file: the schema, and writing.
#include <algorithm>

#include <coppice/error.h>
#include <coppice/pipeline.h>
#include <coppice/report.h>

#include "report/png.h"
#include "report/view.h"

namespace coppice::eval {
namespace {

// JSON schema, draft 2020-12. What Coppice reads is required; what stages and instruments add is allowed.
constexpr const char* kSchema = R"json({
  "$schema": "https://json-schema.org/draft/2020-12/schema",
  "title": "Coppice report, version 1",
  "type": "object",
  "required": ["format", "version", "title", "generated_by", "summary", "warnings", "runs", "pareto"],
  "properties": {
    "format": {"const": "coppice-report"},
    "version": {"const": 1},
    "title": {"type": "string"},
    "generated_by": {"type": "string"},
    "summary": {"type": "string"},
    "warnings": {"type": "array", "items": {"type": "string"}},
    "runs": {"type": "array", "items": {"$ref": "#/$defs/run"}},
    "pareto": {"$ref": "#/$defs/pareto"}
  },
  "$defs": {
    "figure": {
      "description": "A number with its source. The value is null exactly when the provenance is unavailable; then reason says why.",
      "type": "object",
      "required": ["value", "unit", "provenance"],
      "properties": {
        "value": {"type": ["number", "null"]},
        "unit": {"type": "string"},
        "provenance": {"enum": ["measured", "derived", "modelled", "assumed", "unavailable"]},
        "method": {"type": "string"},
        "interval": {"description": "95 %, statistical", "anyOf": [{"$ref": "#/$defs/pair"}, {"type": "null"}]},
        "reason": {"type": "string"},
        "systematic_ratio": {"description": "bounds of the method: true value / stated value", "$ref": "#/$defs/pair"}
      }
    },
    "pair": {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2},
    "energy_class": {
      "type": "object",
      "required": ["best", "worst", "bands", "ratio"],
      "properties": {
        "best": {"enum": ["A", "B", "C", "D", "E", "F", "G"]},
        "worst": {"enum": ["A", "B", "C", "D", "E", "F", "G"]},
        "bands": {"const": "energy-class-1"},
        "ratio": {"$ref": "#/$defs/figure"}
      }
    },
    "run": {
      "type": "object",
      "required": ["folder", "manifest", "stages", "cost"],
      "properties": {
        "folder": {"type": "string"},
        "manifest": {"type": "object"},
        "recipe": {"type": "string"},
        "stages": {"type": "array", "items": {"$ref": "#/$defs/stage"}},
        "cost": {
          "type": "object",
          "required": ["seconds", "energy_j", "carbon_g", "payback_inferences"],
          "properties": {
            "seconds": {"$ref": "#/$defs/figure"},
            "energy_j": {"$ref": "#/$defs/figure"},
            "carbon_g": {"$ref": "#/$defs/figure"},
            "payback_inferences": {"description": "of the energy", "$ref": "#/$defs/figure"},
            "payback_carbon_inferences": {"$ref": "#/$defs/figure"}
          }
        }
      }
    },
    "stage": {
      "type": "object",
      "required": ["folder", "name", "measurement", "stage"],
      "properties": {
        "folder": {"type": "string"},
        "name": {"type": "string"},
        "energy_class": {
          "description": "A to G; worst differs from best where the ratio's interval spans classes; null without energy",
          "anyOf": [{"type": "null"}, {"$ref": "#/$defs/energy_class"}]
        },
        "measurement": {
          "type": "object",
          "required": ["format", "version", "quality", "figures"],
          "properties": {
            "format": {"const": "coppice-measurement"},
            "version": {"const": 1},
            "quality": {
              "type": "object",
              "required": ["metric", "points", "figure"],
              "properties": {
                "metric": {"type": "string"},
                "points": {"type": ["number", "null"]},
                "higher_is_better": {"type": "boolean"},
                "figure": {"$ref": "#/$defs/figure"}
              }
            },
            "metrics": {"type": "object", "additionalProperties": {"$ref": "#/$defs/figure"}},
            "figures": {"type": "object", "additionalProperties": {"$ref": "#/$defs/figure"}},
            "latency": {
              "type": "array",
              "items": {
                "type": "object",
                "required": ["batch", "threads", "p50_s"],
                "properties": {
                  "batch": {"type": "integer"},
                  "threads": {"type": "integer"},
                  "p50_s": {"$ref": "#/$defs/figure"},
                  "p90_s": {"$ref": "#/$defs/figure"},
                  "p99_s": {"$ref": "#/$defs/figure"},
                  "throughput_per_s": {"$ref": "#/$defs/figure"},
                  "ratio_to_baseline": {"$ref": "#/$defs/figure"},
                  "relative_interval": {
                    "description": "half width of the ratio's interval / the ratio; the baseline's is of p50",
                    "type": "object",
                    "required": ["wanted", "reached"],
                    "properties": {"wanted": {"type": "number"}, "reached": {"type": ["number", "null"]}}
                  },
                  "steady": {"type": "boolean"}
                }
              }
            },
            "compression": {"type": "object", "additionalProperties": {"$ref": "#/$defs/figure"}}
          }
        },
        "stage": {
          "type": "object",
          "required": ["format", "version", "stage"],
          "properties": {
            "format": {"const": "coppice-stage"},
            "version": {"const": 1},
            "stage": {"type": "string"},
            "kept": {"type": "boolean"},
            "verdict": {"type": "string"},
            "changes": {"type": "array", "items": {"type": "object", "required": ["layer", "action"]}},
            "warnings": {"type": "array", "items": {"type": "string"}}
          }
        }
      }
    },
    "pareto": {
      "type": "object",
      "required": ["quality", "default", "measures"],
      "properties": {
        "quality": {"type": ["object", "null"]},
        "default": {"description": "key of the axis across", "type": ["string", "null"]},
        "default_y": {"description": "key of the axis up", "type": "string"},
        "measures": {
          "type": "array",
          "items": {
            "type": "object",
            "required": ["key", "name", "unit", "points", "front", "knee", "hypervolume"],
            "properties": {
              "key": {"type": "string"},
              "name": {"type": "string"},
              "unit": {"type": "string"},
              "points": {
                "type": "array",
                "items": {
                  "type": "object",
                  "required": ["stage", "status", "x", "x_interval", "x_provenance", "y", "y_interval", "y_provenance"],
                  "properties": {
                    "stage": {"description": "<number of the run>/<folder of the stage>", "type": "string"},
                    "status": {"enum": ["front", "tied", "dominated"]},
                    "x": {"type": "number"},
                    "x_interval": {"$ref": "#/$defs/pair"},
                    "x_provenance": {"enum": ["measured", "derived", "modelled", "assumed"]},
                    "x_method": {"type": "string"},
                    "y": {"description": "quality in points, higher is better", "type": "number"},
                    "y_interval": {"$ref": "#/$defs/pair"},
                    "y_provenance": {"enum": ["measured", "derived", "modelled", "assumed"]},
                    "dominated_by": {"description": "the first ones, at most four", "type": "array", "items": {"type": "string"}}
                  }
                }
              },
              "front": {"type": "array", "items": {"type": "string"}},
              "knee": {"type": ["string", "null"]},
              "hypervolume": {
                "type": "object",
                "required": ["value", "unit", "reference"],
                "properties": {
                  "value": {"type": "number"},
                  "unit": {"type": "string"},
                  "reference": {"type": "object", "required": ["x", "y"]}
                }
              }
            }
          }
        }
      }
    }
  }
})json";

constexpr const char* kComparisonSchema = R"json({
  "$schema": "https://json-schema.org/draft/2020-12/schema",
  "title": "Coppice comparison of two models, version 1",
  "type": "object",
  "required": ["format", "version", "a", "b", "verdict", "sentence", "environment_differences", "warnings", "measures"],
  "properties": {
    "format": {"const": "coppice-comparison"},
    "version": {"const": 1},
    "a": {"$ref": "#/$defs/side"},
    "b": {"$ref": "#/$defs/side"},
    "verdict": {"enum": ["better", "worse", "trade-off", "no difference shown", "not comparable"]},
    "sentence": {"type": "string"},
    "environment_differences": {"type": "array", "items": {"type": "string"}},
    "warnings": {"type": "array", "items": {"type": "string"}},
    "measures": {"type": "array", "items": {"$ref": "#/$defs/measure"}}
  },
  "$defs": {
    "side": {
      "type": "object",
      "required": ["path", "run", "stage", "is_baseline"],
      "properties": {
        "path": {"type": "string"},
        "run": {"type": "string"},
        "stage": {"type": "string"},
        "is_baseline": {"type": "boolean"}
      }
    },
    "figure": {
      "type": "object",
      "required": ["value", "unit", "provenance"],
      "properties": {
        "value": {"type": ["number", "null"]},
        "unit": {"type": "string"},
        "provenance": {"enum": ["measured", "derived", "modelled", "assumed", "unavailable"]}
      }
    },
    "measure": {
      "type": "object",
      "required": ["key", "name", "higher_is_better", "a", "b", "effect", "pairing", "verdict"],
      "properties": {
        "key": {"type": "string"},
        "name": {"type": "string"},
        "higher_is_better": {"type": "boolean"},
        "a": {"$ref": "#/$defs/figure"},
        "b": {"$ref": "#/$defs/figure"},
        "effect": {
          "description": "ratio: B / A; difference: B - A in points, higher is better",
          "type": "object",
          "required": ["kind", "value", "interval", "provenance"],
          "properties": {
            "kind": {"enum": ["ratio", "difference"]},
            "value": {"type": ["number", "null"]},
            "interval": {"anyOf": [{"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}, {"type": "null"}]},
            "provenance": {"enum": ["measured", "derived", "modelled", "assumed", "unavailable"]},
            "p_value": {"type": "number"}
          }
        },
        "pairing": {"enum": ["exact", "direct", "baseline", "unpaired", "none"]},
        "words": {"type": "object", "additionalProperties": {"type": "string"}},
        "verdict": {"enum": ["better", "worse", "no difference shown", "not comparable"]},
        "reason": {"type": "string"}
      }
    }
  }
})json";

struct Format {
    const char *name, *file;
    std::string (*render)(const Json&);
    bool by_default;
    void (*check)(const std::string& where) = nullptr;
};

std::string dumped(const Json& report) {
    report::check_report(report);
    return report.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

const std::vector<Format>& formats_known() {
    static const std::vector<Format> table = {{"card", "model-card.md", model_card, false},
                                              {"csv", "report.csv", csv, true},
                                              {"html", "report.html", html, true},
                                              {"json", "report.json", dumped, true},
                                              {"md", "report.md", markdown, true},
                                              {"png", "report.png", report::png, false, report::check_png},
                                              {"svg", "report.svg", svg, false}};
    return table;
}

const Format& format_called(const std::string& name, const std::string& where) {
    const auto& table = formats_known();
    const auto found = std::find_if(table.begin(), table.end(), [&name](const Format& f) { return f.name == name; });
    if (found == table.end()) throw_unknown(where, "report format", name, report_formats());
    return *found;
}

}  // namespace

const Json& report_schema() {
    static const Json schema = Json::parse(kSchema);
    return schema;
}

const Json& comparison_schema() {
    static const Json schema = Json::parse(kComparisonSchema);
    return schema;
}

std::vector<std::string> report_formats() {
    std::vector<std::string> names;
    for (const auto& format : formats_known()) names.emplace_back(format.name);
    return names;
}

std::vector<std::string> default_report_formats() {
    std::vector<std::string> names;
    for (const auto& format : formats_known())
        if (format.by_default) names.emplace_back(format.name);
    return names;
}

void check_report_formats(const std::vector<std::string>& formats, const std::string& where) {
    for (const auto& name : formats)
        if (const auto& format = format_called(name, where); format.check) format.check(where);
}

std::vector<std::filesystem::path> write_report(const Json& report, const std::filesystem::path& folder,
                                                const std::vector<std::string>& formats) {
    check_report_formats(formats, "report");
    std::error_code failed;
    std::filesystem::create_directories(folder, failed);
    if (failed)
        throw IoError(folder.string(), "the folder cannot be made: " + failed.message(),
                      "Give one that can be written.");
    std::vector<std::filesystem::path> files;
    for (const auto& name : formats) {
        const auto& format = format_called(name, "report");
        files.push_back(folder / format.file);
        write_atomically(files.back(), format.render(report));
    }
    return files;
}

}  // namespace coppice::eval
