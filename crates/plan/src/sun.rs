//! What the sun does at a place: the instants of Celery's solar schedules.
//!
//! The sun's place is computed by the low-precision formulas of the Astronomical Almanac (0.01° between 1950 and 2050), its
//! events by bisection between its highest and its lowest point of a day. Refraction at the horizon is 34′ and the sun's
//! radius 16′, as Celery has it. The result is within a few seconds of an ephemeris at moderate latitudes.

use jiff::Timestamp;
use umbel_api::periodictask::{Solar, SolarEvent};

const DAY: f64 = 86_400.0;
/// 2000-01-01T12:00:00Z.
const J2000: f64 = 946_728_000.0;
/// Half a mean solar day: from the highest point to the lowest.
const HALF: f64 = DAY / 2.0;
/// Where an event does not come on a day it comes within half a year, or never.
const DAYS: i32 = 370;
/// Sunrise and sunset: the centre is so many degrees below the horizon.
const EDGE: f64 = -(34.0 + 16.0) / 60.0;

/// The first time after `after` that the sun does it, in whole seconds. `None`: not within a year.
pub(crate) fn next(solar: &Solar, after: Timestamp) -> Option<Timestamp> {
    let after = after.as_second();
    let at = after as f64;
    // From the day before on: an evening belongs to a noon that may be past.
    let mut noon = noon(solar.longitude, at - DAY);
    for _ in 0..DAYS {
        #[allow(clippy::cast_possible_truncation)] // Seconds since 1970, within some years.
        let found = on_day(solar, noon).map(|found| found.round() as i64);
        if let Some(found) = found.filter(|found| *found > after) {
            return Timestamp::from_second(found).ok();
        }
        noon = self::noon(solar.longitude, noon + DAY);
    }
    None
}

/// The event of the day that has this noon.
fn on_day(solar: &Solar, noon: f64) -> Option<f64> {
    let height = match solar.event {
        SolarEvent::SolarNoon => return Some(noon),
        SolarEvent::DawnAstronomical | SolarEvent::DuskAstronomical => -18.0,
        SolarEvent::DawnNautical | SolarEvent::DuskNautical => -12.0,
        SolarEvent::DawnCivil | SolarEvent::DuskCivil => -6.0,
        SolarEvent::Sunrise | SolarEvent::Sunset => EDGE,
    };
    let is_morning = matches!(
        solar.event,
        SolarEvent::DawnAstronomical | SolarEvent::DawnNautical | SolarEvent::DawnCivil | SolarEvent::Sunrise
    );
    let midnight = if is_morning { noon - HALF } else { noon + HALF };
    let over = |at: f64| altitude(solar.latitude, solar.longitude, at) - height;
    if over(noon) <= 0.0 || over(midnight) >= 0.0 {
        return None;
    }
    let (mut below, mut above) = (midnight, noon);
    while (above - below).abs() > 0.1 {
        let middle = f64::midpoint(below, above);
        if over(middle) > 0.0 {
            above = middle;
        } else {
            below = middle;
        }
    }
    Some(above)
}

/// The noon nearest to a time: when the hour angle is zero.
fn noon(longitude: f64, near: f64) -> f64 {
    let mut at = near;
    for _ in 0..4 {
        at -= hour_angle(longitude, at) / 360.0 * DAY;
    }
    at
}

/// Right ascension and declination in degrees.
fn place(at: f64) -> (f64, f64) {
    let days = (at - J2000) / DAY;
    let mean_longitude = 280.460 + 0.985_647_4 * days;
    let anomaly = (357.528 + 0.985_600_3 * days).to_radians();
    let longitude = (mean_longitude + 1.915 * anomaly.sin() + 0.020 * (2.0 * anomaly).sin()).to_radians();
    let tilt = (23.439 - 0.000_000_4 * days).to_radians();
    let ascension = (tilt.cos() * longitude.sin()).atan2(longitude.cos());
    let declination = (tilt.sin() * longitude.sin()).asin();
    (ascension.to_degrees(), declination.to_degrees())
}

/// Degrees that the sun is past its noon, from -180 to 180.
fn hour_angle(longitude: f64, at: f64) -> f64 {
    let days = (at - J2000) / DAY;
    let sidereal = 280.460_618_37 + 360.985_647_366_29 * days + longitude;
    let angle = sidereal - place(at).0;
    (angle + 180.0).rem_euclid(360.0) - 180.0
}

/// Degrees of the sun's centre over the horizon, without refraction.
fn altitude(latitude: f64, longitude: f64, at: f64) -> f64 {
    let (latitude, declination) = (latitude.to_radians(), place(at).1.to_radians());
    let angle = hour_angle(longitude, at).to_radians();
    let sine = latitude.sin() * declination.sin() + latitude.cos() * declination.cos() * angle.cos();
    sine.asin().to_degrees()
}
