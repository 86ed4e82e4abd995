"""Physical constants, each with its unit and source."""

MEV_PER_GRAM_TO_GY = 1.602176634e-10
"""1 MeV/g in Gy (exact, from the SI definition of the electronvolt, 2019)."""

IDD_GY_MM2_PER_MEV_CM2_G = MEV_PER_GRAM_TO_GY * 100.0 * 1e6
"""MeV cm^2/g per proton -> Gy mm^2 per 10^6 protons (1 cm^2 = 100 mm^2)."""

PROTON_MASS_MEV = 938.27208816
"""Rest energy of the proton, MeV (CODATA 2018)."""

AIR_MASS_STOPPING, AIR_DENSITY = 0.885, 1.2047e-3
"""Mass stopping power of air over that of water (PSTAR, 70 to 230 MeV, within 0.3 %), and its density at 20 degrees C, g/cm^3."""

AIR_RSP = AIR_MASS_STOPPING * AIR_DENSITY
"""Stopping power of air over that of water: half a metre takes half a millimetre off a range."""

WATER_RADIATION_LENGTH_MM = 360.8
"""Radiation length of water, mm (Particle Data Group, 36.08 g/cm^2 at 1 g/cm^3)."""
