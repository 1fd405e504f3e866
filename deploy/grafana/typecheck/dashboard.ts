// What a dashboard's JSON has to be, made of the types that Grafana publishes. They alone would let nearly everything
// through: there, a panel's options and queries are records of anything, since they belong to plugins. Here each type of
// panel has its own options, a misspelt field is an error, and so is a value that its enumeration does not have.
import type * as schema from "@grafana/schema";
import type * as bargauge from "@grafana/schema/dist/esm/raw/composable/bargauge/panelcfg/x/BarGaugePanelCfg_types.gen";
import type * as heatmap from "@grafana/schema/dist/esm/raw/composable/heatmap/panelcfg/x/HeatmapPanelCfg_types.gen";
import type * as stat from "@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen";
import type * as statushistory from "@grafana/schema/dist/esm/raw/composable/statushistory/panelcfg/x/StatusHistoryPanelCfg_types.gen";
import type * as table from "@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen";
import type * as timeseries from "@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen";

/** A type as it is written in JSON: an enumeration by its values, and nothing that is not named. */
type Json<T> = T extends string
  ? `${T}`
  : T extends number | boolean | null | undefined
    ? T
    : T extends readonly (infer Item)[]
      ? Json<Item>[]
      : { [Key in keyof T]: Json<T[Key]> };

/** A query of the Prometheus data source, whose type is not published. */
interface PrometheusQuery {
  datasource?: schema.DataSourceRef;
  editorMode?: "code" | "builder";
  exemplar?: boolean;
  expr: string;
  format?: "time_series" | "table" | "heatmap";
  instant: boolean;
  interval?: string;
  legendFormat?: string;
  range: boolean;
  refId: string;
}

type Override =
  | { id: "color"; value: schema.FieldColor }
  | { id: "thresholds"; value: schema.ThresholdsConfig }
  | { id: "mappings"; value: schema.ValueMapping[] }
  | { id: "custom.lineStyle"; value: schema.LineStyle }
  | { id: "custom.cellOptions"; value: schema.TableCellOptions }
  | { id: "custom.width"; value: number };

type Matcher = { id: "byName" | "byRegexp"; options: string };

type Transformation = {
  id: "organize";
  options: {
    excludeByName: Record<string, boolean>;
    indexByName: Record<string, number>;
    renameByName: Record<string, string>;
  };
};

/** An annotation of the Prometheus data source: what the schema has, and the words that the data source puts on it. */
type Annotation = Omit<schema.AnnotationQuery, "target" | "snapshotData"> & {
  target: PrometheusQuery;
  textFormat: string;
  titleFormat: string;
};

/** A variable, with what only some kinds of variables have. */
type Variable = schema.VariableModel & {
  auto?: boolean;
  auto_count?: number;
  auto_min?: string;
  definition?: string;
};

interface PanelOf<Type extends string, Options, Custom>
  extends Omit<schema.Panel, "type" | "options" | "fieldConfig" | "targets" | "transformations"> {
  type: Type;
  title: string;
  description: string;
  datasource: schema.DataSourceRef;
  gridPos: schema.GridPos;
  options: Options;
  fieldConfig: {
    defaults: Omit<schema.FieldConfig, "custom"> & { custom?: Custom };
    overrides: { matcher: Matcher; properties: Override[] }[];
  };
  targets: PrometheusQuery[];
  transformations?: Transformation[];
}

/** Until Grafana 12, a table's footer was one of its options; the SDK still says that there is none. */
type TableOptions = table.Options & { footer?: { show: false; countRows: boolean; reducer: string[] } };

type Panel =
  | PanelOf<"bargauge", bargauge.Options, never>
  | PanelOf<"heatmap", heatmap.Options, heatmap.FieldConfig>
  | PanelOf<"stat", stat.Options, never>
  | PanelOf<"status-history", statushistory.Options, statushistory.FieldConfig>
  | PanelOf<"table", TableOptions, Partial<table.FieldConfig>>
  | PanelOf<"timeseries", timeseries.Options, timeseries.FieldConfig>
  | schema.RowPanel;

export type DashboardJson = Json<
  Omit<schema.Dashboard, "panels" | "templating" | "annotations"> & {
    uid: string;
    title: string;
    panels: Panel[];
    templating: { list: Variable[] };
    annotations: { list: Annotation[] };
  }
>;
