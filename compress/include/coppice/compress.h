/// Everything of the foundation: models, graphs, data, training, stages and pipelines.
#pragma once

#include <coppice/clock.h>
#include <coppice/data.h>
#include <coppice/error.h>
#include <coppice/graph.h>
#include <coppice/model.h>
#include <coppice/pipeline.h>
#include <coppice/registry.h>
#include <coppice/stage.h>
#include <coppice/train.h>
