//! Figures that are read when they are asked for.

use std::fmt::{Debug, Error, Formatter};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

/// Names and values of a figure's labels.
pub type Labels<'a> = &'a [(&'static str, &'a str)];

/// Writes figures.
pub struct Figures<'a>(DescriptorEncoder<'a>);

impl Figures<'_> {
    /// A figure that goes up and down, without labels.
    pub fn gauge(
        &mut self,
        name: &str,
        help: &str,
        value: impl EncodeGaugeValue,
    ) -> Result<(), Error> {
        let mut figure = self.begin(name, help, MetricType::Gauge)?;
        figure.encode_gauge(&value)
    }

    /// The same, for each set of labels. Without any, the figure is left out.
    pub fn gauges<'l, V: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Labels<'l>, V)>,
    ) -> Result<(), Error> {
        let mut values = values.into_iter().peekable();
        if values.peek().is_none() {
            return Ok(());
        }
        let mut figure = self.begin(name, help, MetricType::Gauge)?;
        for (labels, value) in values {
            figure.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    /// A figure that only goes up.
    pub fn counter(&mut self, name: &str, help: &str, value: f64) -> Result<(), Error> {
        let mut figure = self.begin(name, help, MetricType::Counter)?;
        figure.encode_counter::<NoLabelSet, f64, f64>(&value, None)
    }

    fn begin<'s>(
        &'s mut self,
        name: &'s str,
        help: &str,
        kind: MetricType,
    ) -> Result<MetricEncoder<'s>, Error> {
        // Ends with a full stop, as those of registered figures do.
        self.0
            .encode_descriptor(name, &format!("{help}."), None, kind)
    }
}

/// The name of a variant that has no fields, as values of labels are written.
pub fn snake_case(variant: impl Debug) -> String {
    let mut text = String::new();
    for letter in format!("{variant:?}").chars() {
        if letter.is_ascii_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.push(letter.to_ascii_lowercase());
    }
    text
}

/// Figures from a function, which is called whenever they are asked for.
pub struct OnDemand<F>(pub F);

impl<F> Debug for OnDemand<F> {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str("OnDemand")
    }
}

impl<F> Collector for OnDemand<F>
where
    F: Fn(&mut Figures<'_>) -> Result<(), Error> + Send + Sync + 'static,
{
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        (self.0)(&mut Figures(encoder))
    }
}
